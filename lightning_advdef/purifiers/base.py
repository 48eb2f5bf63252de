"""The contract of a purifier: images in, images out, before any classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_advdef.attacks.surrogates.bpda import replace_value
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

    @property
    def untraceable(self) -> str | None:
        """Why no graph of tensor operations can hold it, after "since"; None if one can."""
        return "it draws random numbers for each image" if self.stochastic else None

    @abstractmethod
    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Purified images.

        Args:
            images: Pixels in [0, 1], shape ``(N, C, H, W)``; never written to. Those of an attack that differentiates
                require a gradient: detach them before they leave PyTorch.
            rng: The images' random numbers.

        Returns:
            Images of the same shape, dtype and device.
        """

    def stand_in(self) -> nn.Module | None:
        """A differentiable approximation, images to images, for one without a gradient; None for the identity."""
        return None

    def with_gradient(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """The purified images, to the last bit, with the gradient that an attacker follows.

        That is its own where it means something, and elsewhere that of the stand-in at these images, as in BPDA.
        Source: Athalye et al., 2018, https://arxiv.org/abs/1802.00420, section 4.1.

        Args:
            images: See :meth:`__call__`.
            rng: The images' random numbers.
        """
        if self.differentiable or not images.requires_grad:
            return self(images, rng)
        stand_in = self.stand_in()
        approximation = images if stand_in is None else stand_in.to(images.device).eval()(images)
        return replace_value(approximation, self(images.detach(), rng))
