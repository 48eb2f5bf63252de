"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 colour pixels."""

from __future__ import annotations

from typing import Any

from torchvision import datasets

from lightning_advdef.data.base import Split
from lightning_advdef.data.torchvision_data import TorchvisionData


class CIFAR10(TorchvisionData):
    """10 classes, in ``root/cifar-10-batches-py``. Source: https://www.cs.toronto.edu/~kriz/cifar.html."""

    spec: str = "cifar10"

    def read(self, split: Split, *, download: bool = False) -> Any:
        """See the base class."""
        return datasets.CIFAR10(self.root, train=split == "train", download=download)


class CIFAR100(TorchvisionData):
    """100 classes, in ``root/cifar-100-python``. Source: https://www.cs.toronto.edu/~kriz/cifar.html."""

    spec: str = "cifar100"

    def read(self, split: Split, *, download: bool = False) -> Any:
        """See the base class."""
        return datasets.CIFAR100(self.root, train=split == "train", download=download)
