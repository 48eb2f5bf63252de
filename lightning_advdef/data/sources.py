"""Where pixels come from: memory or image files; both give a whole batch at once."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

# path and, for a random crop of training, a seed; gives uint8 pixels (C, H, W)
Decoder = Callable[[str, int | None], Tensor]


class ImageSource(ABC):
    """All images of one split.

    Attributes:
        labels: Class of each image, int64, shape ``(N,)``.
    """

    labels: Tensor

    @abstractmethod
    def read(self, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Pixels in [0, 1], float32, shape ``(len(rows), C, H, W)``.

        Args:
            rows: Positions in the split, int64.
            epoch: Epoch of training, for sources that crop at random while they decode; ``None``: fixed pixels.
        """


class MemoryImages(ImageSource):
    """Images held in memory.

    Args:
        pixels: uint8, or float32 in [0, 1]; shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels = pixels.contiguous()
        self.labels = labels

    def read(self, rows: Tensor, epoch: int | None = None) -> Tensor:
        """See the base class; the epoch changes nothing."""
        pixels = self.pixels.index_select(0, rows)
        return pixels / 255 if pixels.dtype == torch.uint8 else pixels

    def mean(self, rows: Tensor) -> Tensor:
        """Mean image over some rows, float32 in [0, 1], shape ``(C, H, W)``."""
        total = torch.zeros(self.pixels.shape[1:], dtype=torch.float64)
        for chunk in torch.split(rows, 1024):
            total += self.read(chunk).sum(0, dtype=torch.float64)
        return (total / len(rows)).to(torch.float32)


class FileImages(ImageSource):
    """Images decoded from files each time they are asked for.

    Args:
        paths: One file per image.
        labels: int64, shape ``(N,)``.
        decode: Reads one file.
        seed: Of random crops.
    """

    def __init__(self, paths: Sequence[str], labels: Tensor, decode: Decoder, seed: int = 0) -> None:
        self.paths = list(paths)
        self.labels = labels
        self._decode = decode
        self._seed = seed

    def read(self, rows: Tensor, epoch: int | None = None) -> Tensor:
        """See the base class."""
        seeds: list[int | None] = [None] * len(rows)
        if epoch is not None:
            seeds = [*SampleRNG.for_images(rows, self._seed, "train", epoch).stream("decode").keys.tolist()]
        pixels = [self._decode(self.paths[row], seed) for row, seed in zip(rows.tolist(), seeds, strict=True)]
        return torch.stack(pixels) / 255

    def cached(self) -> MemoryImages:
        """Decodes every file once and keeps the pixels as uint8."""
        # threads gain nothing here: Python around the decoder costs more than decoding a small image
        return MemoryImages(torch.stack([self._decode(path, None) for path in self.paths]), self.labels)


class ImageDataset(Dataset[Batch]):
    """Some images of a split; a whole batch is fetched by one call.

    Args:
        source: The full split.
        indices: Positions of the images in it, int64.
        training: Whether the source may crop at random.
    """

    def __init__(self, source: ImageSource, indices: Tensor, *, training: bool = False) -> None:
        self.source = source
        self.indices = indices
        self.epoch: int | None = 0 if training else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int | list[int]) -> Batch:
        # a list comes from a sampler that makes the batches itself
        return self.__getitems__(position if isinstance(position, list) else [position])

    def __getitems__(self, positions: list[int]) -> Batch:
        """The batch at these positions of the dataset; ``DataLoader`` calls it with all that it wants."""
        rows = self.indices[torch.tensor(positions)]
        return Batch(self.source.read(rows, self.epoch), self.source.labels[rows], rows)


class EpochSampler(DistributedSampler[Batch]):
    """Shuffles by (seed, epoch) alone, so a resumed fit sees the order of an uninterrupted one.

    Being a ``DistributedSampler`` it is kept by Lightning, with one process and with many, and told each epoch.

    Attributes:
        batch_size: Images of a batch of this process. A last batch of one image, on which batch normalisation of dense
            layers cannot train, is left out; each epoch leaves out another image.
        skip: Images that the next pass leaves out, because an interrupted fit had them before.
    """

    dataset: ImageDataset
    batch_size: int = 1
    skip: int = 0

    def __len__(self) -> int:
        """Images of an epoch, the same for all processes."""
        left_out = self.num_samples > 1 and self.num_samples % self.batch_size == 1
        return self.num_samples - int(left_out)

    def __iter__(self) -> Iterator[Batch]:
        """Positions in the dataset (torch types them as items of it)."""
        skip, self.skip = self.skip, 0
        return itertools.islice(super().__iter__(), skip, len(self))

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the dataset, for random crops."""
        super().set_epoch(epoch)
        self.dataset.epoch = epoch


def as_is(batch: Any) -> Any:
    """The collate function for a dataset that already gives whole batches."""
    return batch
