"""MIM: projected ascent along a momentum of scaled gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_advdef.attacks.lp_ball import per_image
from lightning_advdef.attacks.pgd import PGD


@dataclass(frozen=True)
class MIM(PGD):
    """Momentum iterative method: PGD from the image itself, along a running sum of gradients, in steps of eps / steps.

    Source: Dong et al., 2018, https://arxiv.org/abs/1710.06081, Eqs. 6 and 7; Eq. 9 for l2. The iterate is projected
    onto the ball and the pixel range, which matters where ``step_size`` times ``steps`` exceeds eps. Each gradient is
    divided by its mean absolute value; the paper divides by the sum, which gives the same steps.

    Args:
        decay: Weight of the momentum (mu); 0 is BIM.
    """

    relative_step: ClassVar[float] = 1.0

    steps: int = 10
    random_start: bool = False
    decay: float = 1.0

    def __post_init__(self) -> None:
        """Checks the decay, too."""
        super().__post_init__()
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"decay must be a finite number of at least 0, got {self.decay}")

    def _direction(self, gradient: Tensor, previous: Tensor | None) -> Tensor:
        size = per_image(gradient.flatten(1).abs().mean(dim=1))
        scaled = gradient / torch.where(size > 0, size, 1)
        return scaled if previous is None else self.decay * previous + scaled
