"""GaussianBlur: a control, the simplest of all smoothing."""

from __future__ import annotations

from dataclasses import dataclass

from kornia.filters import gaussian_blur2d
from torch import Tensor

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.rng import SampleRNG

_TRUNCATE = 4.0  # standard deviations, as in SciPy


@dataclass(frozen=True)
class GaussianBlur(Purifier):
    """Gaussian blur, by kornia; borders are repeated.

    No paper claims robustness for it: what a defense gains over a blur of equal clean accuracy is its own.

    Args:
        sigma: Standard deviation in pixels.

    Raises:
        ValueError: If sigma is not above 0.
    """

    sigma: float = 1.0

    differentiable = True

    def __post_init__(self) -> None:
        """Checks the width."""
        if self.sigma <= 0:
            raise ValueError(f"GaussianBlur takes sigma above 0, got {self.sigma}")

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Blurred images."""
        side = 2 * int(_TRUNCATE * self.sigma + 0.5) + 1
        blurred: Tensor = gaussian_blur2d(images, (side, side), (self.sigma, self.sigma), border_type="replicate")
        return blurred
