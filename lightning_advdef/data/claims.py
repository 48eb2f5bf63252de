"""Test images for whichever process is free, so that all processes finish together.

Images cost an attack very different amounts, and which ones is known only afterwards. So each process takes its next
batch from a counter in the process group's own store. Which images form a batch is fixed; only who gets it is not. They
come from all over the data, which may be sorted: a large batch of costly images alone would keep one process long.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from math import ceil
from typing import NamedTuple

import torch
from torch.distributed import distributed_c10d
from torch.utils.data import DistributedSampler

from lightning_advdef.data.partition import hashed_order
from lightning_advdef.data.sources import ImageDataset
from lightning_advdef.types import Batch

_SHARE = 0.75  # of an equal share of what is left: half, as in the paper, took a quarter longer
_SMALLEST = 8  # the last batches have an eighth of the images of the first ones


class Claims(NamedTuple):
    """How test images are handed out to several processes.

    Attributes:
        largest: Most images of a batch.
        shrink: Make the last batches smaller, as is worth while if a small batch costs less than a large one.
    """

    largest: int
    shrink: bool = True


def batch_sizes(images: int, processes: int, claims: Claims) -> list[int]:
    """Images of each batch: three quarters of an equal share of what is left.

    Source: Hummel, Schonberg and Flynn, 1992, Factoring: a method for scheduling parallel loops,
    https://doi.org/10.1145/135226.135232, with batches one by one, a largest size and a smallest one.

    Args:
        images: To hand out, at least 1.
        processes: That share them.
        claims: The largest size, and whether batches shrink.

    Returns:
        Sizes that add up to ``images``.
    """
    parts = processes / _SHARE if claims.shrink else processes
    largest = min(claims.largest, ceil(images / parts))
    smallest = ceil(largest / _SMALLEST) if claims.shrink else largest
    sizes: list[int] = []
    left = images
    while left:
        sizes.append(min(left, max(smallest, min(largest, ceil(left / parts)))))
        left -= sizes[-1]
    return sizes


class ClaimedBatches(DistributedSampler[Batch]):
    """Gives whole batches of positions; the first of each process is its own, the others go to who asks first.

    Being a ``DistributedSampler`` it is kept by Lightning. A process that comes too late for a batch of its own, since
    there are fewer batches than processes, repeats another's: each must take part in what a module may gather.

    Args:
        dataset: What to hand out.
        processes: Of the process group.
        rank: Of this process.
        claims: How.
        name: Of the counter: the same for all processes, and another one for every pass over the data.
    """

    def __init__(self, dataset: ImageDataset, processes: int, rank: int, claims: Claims, name: str) -> None:
        super().__init__(dataset, processes, rank, shuffle=False)
        ends = accumulate(batch_sizes(len(dataset), processes, claims), initial=0)
        order = hashed_order(torch.arange(len(dataset)), "claims").tolist()
        self.batches = [sorted(order[start:end]) for start, end in pairwise(ends)]
        self.name = name

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        """Positions in the dataset; a batch is claimed when it is asked for."""
        number = self.rank % len(self.batches)
        while number < len(self.batches):
            yield self.batches[number]
            number = self._next()

    def __len__(self) -> int:
        """The most batches that one process may get."""
        return max(1, len(self.batches) - self.num_replicas + 1)

    def _next(self) -> int:
        # torch has no public name for the store behind its process group
        return self.num_replicas - 1 + int(distributed_c10d._get_default_store().add(self.name, 1))
