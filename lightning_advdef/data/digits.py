"""Handwritten digits that come with scikit-learn: 1797 images, no download."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from lightning_advdef.data.base import DataModule, Split
from lightning_advdef.data.sources import ImageSource, MemoryImages


class Digits(DataModule):
    """scikit-learn's digits, 8x8 gray pixels, 10 classes: 1438 training and 359 test images.

    Source: Alpaydin and Kaynak, 1998, https://archive.ics.uci.edu/dataset/80. Every fifth image is a test image. The
    17 gray levels 0..16 become ``round(level * 255 / 16)``. ``root`` and ``download`` are not used.
    """

    spec: str = "digits"
    downloadable = False

    def load(self, split: Split) -> ImageSource:
        """See the base class."""
        digits = load_digits()
        is_test = np.arange(len(digits.target)) % 5 == 4
        chosen = is_test if split == "test" else ~is_test
        pixels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        return MemoryImages(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(digits.target[chosen]).long())
