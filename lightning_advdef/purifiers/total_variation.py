"""TotalVariation: the smoothest image near the given one, or near some of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from skimage.restoration import denoise_tv_bregman, denoise_tv_chambolle
from torch import Tensor

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.purifiers.one_by_one import OUTSIDE_TORCH, Array, one_by_one
from lightning_advdef.rng import SampleRNG


@dataclass(frozen=True)
class TotalVariation(Purifier):
    """Total variation minimisation, by scikit-image, each channel by itself.

    Source: Rudin et al., 1992, by Chambolle, 2004, or split Bregman (Goldstein and Osher, 2009); with dropped pixels
    Guo et al., 2018, https://arxiv.org/abs/1711.00117: the image has to be near the kept values alone.

    Args:
        weight: Of the total variation; larger is smoother.
        method: ``chambolle`` or ``split_bregman``. The library weighs the image in the latter, which therefore gets
            1 / weight, as in the authors' code.
        keep: Chance of each value of each channel to be kept; 0.5 in Guo et al. None keeps all, without randomness.
        rounds: With dropped pixels, how often their values are taken from the last result and all is smoothed again.

    Raises:
        ValueError: If a number is out of range.

    Note:
        The authors solve the problem with dropped pixels by a split Bregman of their own. Here it is forward-backward
        splitting around the library's solver: after enough rounds the same minimum, with the first guess of a dropped
        value being the mean of the kept ones.
    """

    weight: float = 0.1
    method: Literal["chambolle", "split_bregman"] = "chambolle"
    keep: float | None = None
    rounds: int = 20

    untraceable = OUTSIDE_TORCH

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.weight <= 0 or self.rounds < 1:
            raise ValueError(
                f"TotalVariation takes weight above 0 and at least 1 of rounds, got {self.weight}, {self.rounds}"
            )
        if self.keep is not None and not 0 < self.keep < 1:
            raise ValueError(f"keep is a chance between 0 and 1, got {self.keep}: leave it out to keep all pixels")

    @property
    def stochastic(self) -> bool:
        """Whether pixels are dropped."""
        return self.keep is not None

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Smoothed images."""
        if self.keep is None:
            return one_by_one(self._smooth, images)
        kept = rng.stream("keep").uniform(*images.shape[1:]) < self.keep
        return one_by_one(self._fill, images, kept)

    def _fill(self, image: Array, kept: Array) -> Array:
        guess = np.full_like(image, image[kept].mean() if kept.any() else 0.5)
        for _ in range(self.rounds):
            guess = self._smooth(np.where(kept, image, guess))
        return guess

    def _smooth(self, image: Array) -> Array:
        # given all channels, the library's split Bregman would start each of them at the result of the one before
        return np.stack([self._smooth_channel(channel) for channel in image])

    def _smooth_channel(self, channel: Array) -> Array:
        if self.method == "chambolle":
            smooth: Array = denoise_tv_chambolle(channel, weight=self.weight)
        else:
            smooth = denoise_tv_bregman(channel, weight=1 / self.weight)
        return smooth
