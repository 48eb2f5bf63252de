"""DDN: a direction by gradient ascent, and a norm that shrinks or grows with success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_advdef.attacks.adaptive_radius import AdaptiveRadiusAttack, Look, cosine_annealed
from lightning_advdef.attacks.losses import LossName
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm, per_image
from lightning_advdef.attacks.smallest import Smallest

_STEP_SIZES = 1.0, 0.01  # α at the first step and at the end
_TINY = 1e-12


@dataclass(frozen=True)
class DDN(AdaptiveRadiusAttack):
    """Decoupled direction and norm, for the smallest l2 perturbation that changes the prediction.

    Source: Rony et al., 2019, https://arxiv.org/abs/1811.09600, algorithm 1: a step of length α along the normalised
    gradient of the cross-entropy, then the perturbation is scaled to the current norm, which is multiplied by 1 - γ
    where the network was fooled and by 1 + γ where it was not. ``steps`` gradients and one forward pass per image.

    Note:
        Zero gradients move nothing, where the authors' code draws a random direction. The norm never exceeds that of
        the way to the farthest corner of the pixel box, as in their code; the paper has no bound.

    Args:
        initial_eps: Norm of the first perturbation before it is judged, in pixel units.
        levels: Pixels are rounded to so many values between 0 and 1 after every step; null for none. The paper and its
            code take 256. No other attack here rounds, and where an image is fooled by less than rounding moves it,
            256 levels make it look more robust than it is: the default is none.
    """

    loss: ClassVar[LossName] = "cross_entropy"

    initial_eps: float = 1.0
    levels: int | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        if not 0 < self.initial_eps < float("inf"):
            raise ValueError(f"initial_eps must be a finite number above 0, got {self.initial_eps}")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels must be at least 2, or null for no rounding, got {self.levels}")

    def _first_radius(self, farthest: Tensor) -> Tensor:
        return torch.full_like(farthest, self.initial_eps)

    def _next_radius(self, radius: Tensor, look: Look, best: Smallest, step: int) -> Tensor:
        return radius * torch.where(look.fooled, 1 - self.gamma, 1 + self.gamma)

    def _move(self, images: Tensor, look: Look, radius: Tensor, step: int) -> Tensor:
        length = cosine_annealed(*_STEP_SIZES, step, self.steps)
        moved = look.iterates - images + length * LpBall("l2", radius).steepest(look.found.gradient)
        scale = radius / lp_norm(moved, "l2").clamp_min(_TINY)
        return self._rounded(self.clip(images + moved * per_image(scale)))

    def _rounded(self, images: Tensor) -> Tensor:
        return images if self.levels is None else (images * (self.levels - 1)).round() / (self.levels - 1)
