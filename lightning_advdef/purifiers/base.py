"""The contract of a purifier: images in, images out, before any classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_advdef.rng import SampleRNG


@dataclass(frozen=True)
class Purifier(ABC):
    """Settings of a test-time part; calling it gives purified images.

    A subclass is a frozen dataclass of plain settings, so that a YAML and a checkpoint can hold it. What it makes of an
    image depends on that image and its random numbers alone.
    """

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers."""
        return False

    @property
    def differentiable(self) -> bool:
        """Whether autograd through it gives a gradient that means something."""
        return False

    @abstractmethod
    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Purified images.

        Args:
            images: Pixels in [0, 1], shape ``(N, C, H, W)``; never written to.
            rng: The images' random numbers.

        Returns:
            Images of the same shape, dtype and device.
        """

    def stand_in(self) -> nn.Module | None:
        """A differentiable approximation for the backward pass of BPDA, images to images; None for the identity."""
        return None
