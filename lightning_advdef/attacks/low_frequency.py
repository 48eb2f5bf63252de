"""Any attack inside a ball, with a perturbation of low frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from lightning_advdef.attacks.base import FixedBudgetAttack, Needs, refuse_parts
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.lp_ball import LpBall
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.attacks.surrogates.bpda import replace_value
from lightning_advdef.attacks.surrogates.reparametrized import Reparametrized
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Eps, Norm

# beyond the rounding of float64 and within that of float32, so that all frequencies together give the identity exactly
_DECIMALS = 12


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II of ``size`` numbers, float64, one frequency a row, shape ``(size, size)``."""
    frequency = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    place = torch.arange(size, dtype=torch.float64) + 0.5
    rows = (math.pi / size * frequency * place).cos() * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def low_pass(size: int, share: float) -> Tensor:
    """The projection of ``size`` numbers on the lowest ``share`` of their DCT, float64, symmetric."""
    kept = dct_matrix(size)[: max(1, round(share * size))]
    return (kept.T @ kept).round(decimals=_DECIMALS)


@dataclass(frozen=True)
class LowFrequency(FixedBudgetAttack):
    """Runs an attack over perturbations made of the lowest DCT frequencies, which purifiers tend to keep.

    Source: Guo et al., 2019, https://arxiv.org/abs/1809.08758, section 3.1, and Sharma et al., 2019,
    https://arxiv.org/abs/1903.00073: maximise the loss of ``x + low(perturbation)``. The inner attack, with gradients
    or queries, moves a perturbation in its own ball, and everything it asks about and returns is
    ``clip(x + project(low(perturbation)))``. Gradients pass through the band alone, as those of PGD do not see its
    projection, so that with ``frequencies: 1.0`` it is the inner attack.

    Note:
        Few perturbations of low frequencies alone fill a box of pixels, so the budget and the pixel range are kept by
        projecting what the band gives. In l2 the budget itself never does anything. In linf some 3% of the
        perturbation's energy then lies beyond the band (MNIST, eps 0.15, a quarter of the frequencies along each axis).
        Scaling the whole perturbation into the ball would keep the band, but is weak: with half of the frequencies it
        left 59% of 300 images right where clipping leaves 38%.

    Args:
        attack: Inner attack; its budget is the budget.
        frequencies: Share of the frequencies kept along height and along width, in (0, 1].
        box: Keep pixels in [0, 1], also in the inner attack.

    Raises:
        ValueError: If the inner attack is made of parts, or frequencies is out of its range.
    """

    eps: Eps = field(init=False, repr=False)
    norm: Norm = field(init=False, repr=False)
    attack: FixedBudgetAttack = field()
    frequencies: float = 0.25

    def __post_init__(self) -> None:
        """Takes the budget from the inner attack."""
        refuse_parts(self.attack, "LowFrequency")
        if not 0 < self.frequencies <= 1:
            raise ValueError(f"frequencies is the share that is kept and must lie in (0, 1], got {self.frequencies}")
        for name in ("eps", "norm"):
            object.__setattr__(self, name, getattr(self.attack, name))
        super().__post_init__()

    @property
    def needs(self) -> Needs:
        """What the inner attack needs."""
        return self.attack.needs

    def with_eps(self, eps: float) -> Self:
        """The same frequencies for another budget."""
        return replace(self, attack=self.attack.with_eps(eps))

    def cost(self, classes: int) -> Cost:
        """Those of the inner attack."""
        return self.attack.cost(classes)

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """The inner attack over variables that stand for images with a perturbation in the band."""
        down, across = (low_pass(size, self.frequencies).to(images) for size in images.shape[2:])
        in_order = rng.rows.argsort()

        def decode(variables: Tensor, own: SampleRNG) -> Tensor:
            rows = in_order[torch.searchsorted(rng.rows[in_order], own.rows)]
            low = down @ (variables - images[rows]) @ across
            return replace_value(images[rows] + low, self.clip(images[rows] + ball[rows].project(low.detach())))

        attack = replace(self.attack, box=self.box)
        found = attack.search(Reparametrized.over(surrogate, decode), images, goal, rng, ball)
        return decode(found, rng)
