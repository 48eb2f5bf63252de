import numpy as np
import pytest
import torch
from PIL import Image

from lightning_advdef.data import DataModule
from lightning_advdef.data.sources import MemoryImages


class Toy(DataModule):
    """50 training and 30 test images of 1x8x8 pixels; the first pixel of image i is i."""

    spec = "1x8x8x5"

    def load(self, split):
        count = 50 if split == "train" else 30
        pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(count))
        pixels[:, 0, 0, 0] = torch.arange(count)
        return MemoryImages(pixels.to(torch.uint8), torch.arange(count) % 5)


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def image_folder(tmp_path):
    """Two classes with three training and two test images of 3x8x8 pixels each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path
