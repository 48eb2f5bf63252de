"""Chain: purifiers one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.rng import SampleRNG


@dataclass(frozen=True)
class Chain(Purifier):
    """Applies purifiers in order; each has random numbers of its own.

    Args:
        purifiers: At least one.

    Raises:
        ValueError: If there is none.
    """

    purifiers: list[Purifier]

    def __post_init__(self) -> None:
        """Checks that there is something to apply."""
        if not self.purifiers:
            raise ValueError("Chain needs at least 1 of purifiers, got none")

    @property
    def stochastic(self) -> bool:
        """Whether any of them is."""
        return any(purifier.stochastic for purifier in self.purifiers)

    @property
    def differentiable(self) -> bool:
        """Whether all of them are."""
        return all(purifier.differentiable for purifier in self.purifiers)

    @property
    def untraceable(self) -> str | None:
        """Why the first of them that cannot be traced cannot."""
        return next((purifier.untraceable for purifier in self.purifiers if purifier.untraceable), None)

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Images behind all of them."""
        for purifier, own in self._in_order(rng):
            images = purifier(images, own)
        return images

    def with_gradient(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Images behind all of them, each with the gradient that it has by itself."""
        for purifier, own in self._in_order(rng):
            images = purifier.with_gradient(images, own)
        return images

    def _in_order(self, rng: SampleRNG) -> Iterator[tuple[Purifier, SampleRNG]]:
        return ((purifier, rng.stream("chain", position)) for position, purifier in enumerate(self.purifiers))
