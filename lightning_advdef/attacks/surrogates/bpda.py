"""BPDA: the deployed defense forward, something differentiable backward."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.checkpoints import weights_hash
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access


class _Replace(torch.autograd.Function):
    """Has the value of ``purified`` and the gradient of ``approximation``, to the last bit of both."""

    @staticmethod
    def forward(ctx: Any, approximation: Tensor, purified: Tensor) -> Tensor:
        ctx.dtype = approximation.dtype
        return purified.view_as(purified)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


def replace_value(approximation: Tensor, purified: Tensor) -> Tensor:
    """A tensor with the value of ``purified`` and the gradient of ``approximation``, to the last bit of both."""
    found: Tensor = _Replace.apply(approximation, purified)
    return found


class BPDA(Surrogate):
    """Backward pass differentiable approximation of the purifier.

    Source: Athalye et al., 2018, https://arxiv.org/abs/1802.00420, section 4.1. The answer is that of the
    deployed defense, bit for bit, votes and noise included; the gradient takes the purifier for the identity, or for
    ``stand_in``.

    Args:
        defense: The deployed defense; a plain network has no purifier, so this is its full gradient.
        stand_in: Differentiable module from images to images of the purifier's output shape, whose vector-Jacobian
            product at the attacked image replaces the purifier's; None for the identity. It runs in eval mode, and its
            parameters stay as they are.

    Raises:
        ValueError: If the defense cannot be run with another purifier.
    """

    access: Access = "bpda"

    def __init__(self, defense: nn.Module, stand_in: nn.Module | None = None) -> None:
        super().__init__(defense)
        if not (hasattr(self.defense, "purify") and hasattr(self.defense, "deploy")):
            raise ValueError(
                f"{type(defense).__name__} has no purify(images, rng) and deploy(images, rng, purify), which BPDA "
                "differentiates around: derive it from DefenseModule, or attack it with Undefended"
            )
        self.stand_in = stand_in

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The defense and the stand-in."""
        return super().modules if self.stand_in is None else (*super().modules, self.stand_in)

    def settings(self) -> dict[str, Any]:
        """Class and weights of the stand-in."""
        if self.stand_in is None:
            return {"stand_in": None}
        return {"stand_in": {"module": repr(self.stand_in), "weights": self._weights}}

    @cached_property
    def _weights(self) -> str:
        return weights_hash(self.stand_in) if self.stand_in is not None else ""

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of the deployed defense, shape ``(1, N, K)``."""
        return self.defense.deploy(images, rng.stream("defense"), self._purify).unsqueeze(0)

    def deployed(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """What the purifier makes of images ``(N, C, H, W)``, without a graph."""
        # a copy, since a purifier may write to what it is given
        return self.defense.purify(images.detach().clone(), rng).detach()

    def _purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        purified = self.deployed(images, rng)
        if not images.requires_grad:
            return purified
        return replace_value(self._approximate(images, purified.shape), purified)

    def _approximate(self, images: Tensor, shape: torch.Size) -> Tensor:
        if self.stand_in is None:
            found = images
        else:
            self.follow(images, self.stand_in)
            found = self.stand_in(images)
        if found.shape != shape:
            raise ValueError(
                f"{type(self.defense).__name__} purifies images of shape {tuple(images.shape[1:])} to "
                f"{tuple(shape[1:])}, but {'the identity' if self.stand_in is None else 'stand_in'} gives "
                f"{tuple(found.shape[1:])}: give BPDA a stand_in with the purifier's output shape"
            )
        return found
