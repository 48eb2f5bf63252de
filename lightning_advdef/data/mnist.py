"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 gray pixels, 10 classes."""

from __future__ import annotations

from typing import Any

from torchvision import datasets

from lightning_advdef.data.base import Split
from lightning_advdef.data.torchvision_data import TorchvisionData


class MNIST(TorchvisionData):
    """Handwritten digits, in ``root/MNIST/raw``. Source: LeCun et al., 1998, http://yann.lecun.com/exdb/mnist."""

    spec: str = "mnist"

    def read(self, split: Split, *, download: bool = False) -> Any:
        """See the base class."""
        return datasets.MNIST(self.root, train=split == "train", download=download)


class FashionMNIST(TorchvisionData):
    """Clothes, in ``root/FashionMNIST/raw``. Source: Xiao et al., 2017, https://arxiv.org/abs/1708.07747."""

    spec: str = "fashion_mnist"

    def read(self, split: Split, *, download: bool = False) -> Any:
        """See the base class."""
        return datasets.FashionMNIST(self.root, train=split == "train", download=download)
