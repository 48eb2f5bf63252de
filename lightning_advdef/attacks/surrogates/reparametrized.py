"""Reparametrized: the images that an attack moves stand for others, which are what a surrogate is asked about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG


class Reparametrized(Surrogate):
    """Another surrogate in use, asked about what a map makes of the attack's variables.

    It writes to the same books. The map runs in float32, whatever the search computes in.
    """

    inner: Surrogate
    decode: Callable[[Tensor, SampleRNG], Tensor]

    @classmethod
    def over(cls, surrogate: Surrogate, decode: Callable[[Tensor, SampleRNG], Tensor]) -> Self:
        """Puts a differentiable ``decode(variables, rng) -> images``, both ``(N, C, H, W)``, before a surrogate."""
        mapped = cls.__new__(cls)
        vars(mapped).update(vars(surrogate))
        mapped.inner, mapped.decode, mapped.access = surrogate, decode, surrogate.access
        mapped.draws = surrogate.draws
        return mapped

    @property
    def exact(self) -> bool:
        """As the inner surrogate: what it is asked about is what the attack returns."""
        return self.inner.exact

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Those of the inner surrogate."""
        return self.inner.modules

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """The inner surrogate's logits ``(S, N, K)`` of the images that the variables stand for."""
        return super().__call__(self.decode(images, rng), rng)

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """The inner surrogate's logits of images, shape ``(S, N, K)``."""
        return self.inner.logits(images, rng)

    def watch_logits(self, logits: Tensor) -> None:
        """In the name of the inner surrogate."""
        self.inner.watch_logits(logits)

    def auxiliary(self, images: Tensor, labels: Tensor, rng: SampleRNG) -> Tensor | None:
        """The inner surrogate's further loss of the images that the variables stand for."""
        return self.inner.auxiliary(self.decode(images, rng), labels, rng)
