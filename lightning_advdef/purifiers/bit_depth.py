"""BitDepth: fewer levels per pixel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.rng import SampleRNG


@dataclass(frozen=True)
class BitDepth(Purifier):
    """Rounds pixels to ``2**bits`` evenly spaced levels.

    Source: Xu et al., 2018, https://arxiv.org/abs/1704.01155, section III-A. The gradient is zero almost everywhere, so
    attackers take the purifier for the identity.

    Args:
        bits: Of each channel, from 1 to 8.

    Raises:
        ValueError: If bits is out of range.
    """

    bits: int = 5

    def __post_init__(self) -> None:
        """Checks the number of bits."""
        if not 1 <= self.bits <= 8:
            raise ValueError(f"BitDepth takes bits from 1 to 8, got {self.bits}")

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Rounded images."""
        highest = 2**self.bits - 1
        rounded: Tensor = (images * highest).round() / highest
        return rounded
