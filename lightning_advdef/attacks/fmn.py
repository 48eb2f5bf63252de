"""FMN: the distance to the boundary, first estimated by the gradient and then followed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_advdef.attacks.adaptive_radius import AdaptiveRadiusAttack, Look, cosine_annealed
from lightning_advdef.attacks.losses import LossName
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm
from lightning_advdef.attacks.smallest import Smallest
from lightning_advdef.types import Norm

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
_LAST_GAMMA = 1e-4
_LAST_STEP = 0.01  # share of the first step's length
_TINY = 1e-12


@dataclass(frozen=True)
class FMN(AdaptiveRadiusAttack):
    """Fast minimum norm, for the smallest perturbation in a norm that changes the prediction.

    Source: Pintor et al., 2021, https://arxiv.org/abs/2102.12827, algorithm 1: a step of l2 length α along the gradient
    of the margin, then a projection onto the ball, whose radius is the linearised distance to the boundary until the
    network is fooled for the first time, and from then on shrinks by 1 - γ or grows by 1 + γ. Both α and γ are annealed
    by half a cosine. ``steps`` gradients and one forward pass per image.

    Note:
        Pixels are clipped to [0, 1] before the projection, not after it: what a step spends on pixels at a bound would
        otherwise use up the radius, and with l2 and l1 the search halts short of the boundary (MNIST, LeNet, 100 steps:
        l2 fools all images instead of 22%, l1 all instead of 69%; linf is the same either way). The linearised distance
        is exceeded by γ, too: on a network that is linear the search would end on the boundary, still not fooled.

    Args:
        step_size: l2 length of the first step (α_0) in pixel units, whatever the norm; the last has a hundredth of it.
        norm: Norm that is minimised.
    """

    loss: ClassVar[LossName] = "margin"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    step_size: float = 1.0
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        if self.norm not in self.norms:
            raise ValueError(f"FMN knows the norms {', '.join(self.norms)}, got {self.norm!r}")
        if not 0 < self.step_size < float("inf"):
            raise ValueError(f"step_size must be a finite number above 0, got {self.step_size}")

    @property
    def size_norm(self) -> Norm:
        """The norm that was chosen."""
        return self.norm

    def _first_radius(self, farthest: Tensor) -> Tensor:
        return torch.full_like(farthest, float("inf"))

    def _next_radius(self, radius: Tensor, look: Look, best: Smallest, step: int) -> Tensor:
        gamma = cosine_annealed(self.gamma, _LAST_GAMMA, step, self.steps)
        slope = lp_norm(look.found.gradient, _DUAL[self.norm]).clamp_min(_TINY)
        linearised = look.sizes + look.gap.abs() / slope
        outside = torch.where(best.sizes.isfinite(), radius, linearised) * (1 + gamma)
        return torch.where(look.fooled, torch.minimum(radius * (1 - gamma), best.sizes), outside)

    def _move(self, images: Tensor, look: Look, radius: Tensor, step: int) -> Tensor:
        length = cosine_annealed(self.step_size, _LAST_STEP * self.step_size, step, self.steps)
        # the l2 direction in every norm: the projection makes it one of the norm's own
        moved = self.clip(look.iterates + length * LpBall("l2", radius).steepest(look.found.gradient))
        return self.clip(images + LpBall(self.norm, radius).project(moved - images))
