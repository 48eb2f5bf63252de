"""Chain: purifiers one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

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

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Images behind all of them."""
        for position, purifier in enumerate(self.purifiers):
            images = purifier(images, rng.stream("chain", position))
        return images

    def stand_in(self) -> nn.Module | None:
        """Those of the parts in a row, where a part has one."""
        found = [module for purifier in self.purifiers if (module := purifier.stand_in()) is not None]
        return nn.Sequential(*found) if found else None
