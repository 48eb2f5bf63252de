"""Which images of a split are used: the same for everyone, whatever their seed, batch size or machine."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_advdef.rng import SampleRNG


def hashed_order(indices: Tensor, purpose: str) -> Tensor:
    """The indices ordered by a hash of each, so that a smaller choice is part of a larger one."""
    # the user's seed stays out: runs with different seeds are compared on the same images
    numbers = SampleRNG.for_images(indices, split="partition").stream(purpose).uniform(1).squeeze(1)
    return indices[torch.argsort(numbers, stable=True)]


def carve_validation(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Splits the training set into training and validation images.

    Args:
        count: Images of the training set.
        fraction: Share of validation images, in [0, 1); above 0 it gives at least one image.

    Returns:
        Sorted positions of the training and of the validation images, int64, disjoint.
    """
    order = hashed_order(torch.arange(count), "validation")
    size = max(1, round(fraction * count)) if fraction > 0 else 0
    return order[size:].sort().values, order[:size].sort().values


def choose(indices: Tensor, limit: int | None) -> Tensor:
    """At most ``limit`` of the indices (``None``: all), chosen at random but always the same, sorted."""
    return indices if limit is None else hashed_order(indices, "limit")[:limit].sort().values
