"""Street View House Numbers: 73,257 training and 26,032 test images of 32x32 colour pixels, 10 classes."""

from __future__ import annotations

from typing import Any

from torchvision import datasets

from lightning_advdef.data.base import Split
from lightning_advdef.data.torchvision_data import TorchvisionData


class SVHN(TorchvisionData):
    """Cropped house digits, in ``root/{train,test}_32x32.mat``. Source: http://ufldl.stanford.edu/housenumbers."""

    spec: str = "svhn"

    def read(self, split: Split, *, download: bool = False) -> Any:
        """See the base class."""
        return datasets.SVHN(self.root, split=split, download=download)
