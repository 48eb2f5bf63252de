"""What the data sets that torchvision reads have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_advdef.data.base import DataModule, Split
from lightning_advdef.data.sources import ImageSource, MemoryImages
from lightning_advdef.errors import DatasetNotFoundError

# what torchvision raises for files that are missing, cut short or out of reach
_READ_ERRORS = (RuntimeError, OSError, EOFError, ValueError, AssertionError)


class TorchvisionData(DataModule):
    """Base of data sets that torchvision downloads and reads; a subclass names the reader."""

    @abstractmethod
    def read(self, split: Split, *, download: bool = False) -> Any:
        """Torchvision's data set for a split, with the pixels in its attribute ``data``."""

    def prepare_data(self) -> None:
        """Downloads both splits if ``download`` is set; Lightning calls it in one process of each machine.

        Raises:
            DatasetNotFoundError: If the download fails.
        """
        if not self.download:
            return
        try:
            for split in get_args(Split):
                self.read(split, download=True)
        except _READ_ERRORS as error:
            reason = " ".join(str(error).split())
            raise DatasetNotFoundError(
                f"{type(self).__name__} could not be downloaded to {self.root} ({reason}): check the network, or "
                "copy the files there by hand and leave out --data.download"
            ) from error

    def load(self, split: Split) -> ImageSource:
        """See the base class."""
        try:
            dataset = self.read(split)
        except _READ_ERRORS as error:
            raise self.not_found(f"{self.root} (missing or damaged)") from error
        labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
        return MemoryImages(_channels_first(dataset.data), torch.as_tensor(labels).long())


def _channels_first(data: np.ndarray[Any, Any] | Tensor) -> Tensor:
    """uint8 ``(N, C, H, W)`` of gray ``(N, H, W)``, ``(N, H, W, 3)`` or ``(N, 3, H, W)``."""
    pixels = torch.as_tensor(data)
    if pixels.ndim == 3:
        return pixels.unsqueeze(1)
    return pixels.permute(0, 3, 1, 2) if pixels.shape[-1] == 3 else pixels
