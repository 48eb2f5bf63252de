"""NonLocalMeans: the mean of pixels whose surroundings look alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.restoration import denoise_nl_means
from torch import Tensor

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.purifiers.one_by_one import OUTSIDE_TORCH, Array, one_by_one
from lightning_advdef.rng import SampleRNG


@dataclass(frozen=True)
class NonLocalMeans(Purifier):
    """Non-local means, by scikit-image, all channels together.

    Source: Buades et al., 2005; as a squeezer Xu et al., 2018, https://arxiv.org/abs/1704.01155, section III-B, with
    search 11 or 13, patch 3 and strength 2 or 4.

    Args:
        search: Side of the window that is searched, in pixels; odd.
        patch: Side of the surroundings that are compared, in pixels; odd.
        strength: Difference up to which surroundings look alike, on the scale of 0 to 255.

    Raises:
        ValueError: If a number is out of range.

    Note:
        The authors use OpenCV, which rounds pixels to 8 bits and gives colours a filter of their own beside brightness;
        here pixels are not rounded and the three channels are compared as they are.
    """

    search: int = 13
    patch: int = 3
    strength: float = 2.0

    untraceable = OUTSIDE_TORCH

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if min(self.search, self.patch) < 1 or self.search % 2 == 0 or self.patch % 2 == 0 or self.strength <= 0:
            raise ValueError(
                "NonLocalMeans takes odd search and patch and a strength above 0, got "
                f"{self.search}, {self.patch}, {self.strength}"
            )

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Averaged images."""
        return one_by_one(self._average, images)

    def _average(self, image: Array) -> Array:
        channels_last = np.moveaxis(image, 0, -1)
        average: Array = denoise_nl_means(
            channels_last,
            patch_size=self.patch,
            patch_distance=self.search // 2,
            h=self.strength / 255,
            channel_axis=-1,
        )
        # the library drops a single channel
        return np.moveaxis(average.reshape(channels_last.shape), -1, 0)
