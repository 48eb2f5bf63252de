"""Purifiers: what changes images before any classifier sees them."""

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.purifiers.bit_depth import BitDepth
from lightning_advdef.purifiers.chain import Chain

__all__ = [
    "BitDepth",
    "Chain",
    "Purifier",
]
