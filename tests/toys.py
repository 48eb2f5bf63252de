"""Planted defenses and data whose robust accuracy is known."""

import functools
import os
import time
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import LightningModule
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_advdef.attacks import BPDA, EOT
from lightning_advdef.data import DataModule
from lightning_advdef.data.sources import MemoryImages
from lightning_advdef.defenses import DefenseModule, StandardModule

COUNT = 40
LARGEST = 0.2


class Flat(nn.Module):
    """Cannot be asked about no images, as a view to ``(N, -1)`` cannot; dark images are of class 1."""

    def forward(self, images):
        score = 0.4 - images.view(len(images), -1).mean(dim=1)
        return torch.stack([-score, score], dim=1)


class NoisyInput(DefenseModule):
    """Adds noise to the image, and says so."""

    stochastic = True

    def purify(self, images, rng):
        return images + 0.2 * rng.stream("noise").normal(*images.shape[1:])


class UndeclaredNoise(NoisyInput):
    """Adds noise to the image, and does not say so."""

    stochastic = False


class RoundedInput(DefenseModule):
    """Rounds pixels to 0 or 1: the gradient is zero everywhere."""

    def purify(self, images, rng):
        return images.round()


class DetachedInput(DefenseModule):
    """Cuts the gradient."""

    def purify(self, images, rng):
        return images.detach()


class KnownRounding(RoundedInput):
    """Rounding that says how an attacker who knows it would go about it."""

    def adaptive_surrogates(self):
        return {"bpda": BPDA, "eot2": functools.partial(EOT, of=BPDA, samples=2)}


class Foreign(LightningModule):
    """A module of somebody else: ``forward`` and batches of images and labels, with batch normalisation."""

    def __init__(self, noise=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.noise = noise

    def forward(self, images):
        return self.net(images + self.noise * torch.randn_like(images))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def foreign_loader(count=20, batch_size=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(count) % 10), batch_size=batch_size)


class Toy(DataModule):
    """Random images of any spec, a few of each split."""

    downloadable = False

    def __init__(self, toy_spec="1x8x8x10", count=16, **kwargs):
        super().__init__(**kwargs)
        self._spec = toy_spec
        self.count = count

    @property
    def spec(self):
        return self._spec

    def load(self, split):
        from lightning_advdef.data import get_spec

        spec = get_spec(self.spec)
        generator = torch.Generator().manual_seed(len(split))
        pixels = torch.randint(0, 256, (self.count, *spec.shape), generator=generator).to(torch.uint8)
        return MemoryImages(pixels, torch.arange(self.count) % spec.classes)


def linear_problem(folder):
    """Two classes of 1x4x4 images, a linear network, and each image's distance to the boundary.

    Image i lies at linf distance ``(i + 0.5) / COUNT * LARGEST``; every tenth label is wrong.

    Returns:
        Path of the data, path of the weights, and the distance of each image (negative if wrong) by norm.
    """
    rng = np.random.default_rng(0)
    weight = (rng.choice([-1, 1], 16) * rng.uniform(0.5, 1.5, 16)).astype(np.float32)
    sides = np.where(np.arange(COUNT) % 2, 1, -1)
    linf = (np.arange(COUNT) + 0.5) / COUNT * LARGEST
    images = 0.5 + (sides * linf)[:, None] * np.sign(weight)
    images = images.reshape(-1, 1, 4, 4).astype(np.float32)
    wrong = np.arange(COUNT) % 10 == 3
    labels = np.where(wrong, sides < 0, sides > 0).astype(np.int64)
    np.savez(folder / "linear.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    # the network sees (x - 0.5) / 0.5; logits are minus and plus half of the scaled score
    state = {"head.weight": torch.from_numpy(np.stack([-weight, weight])), "head.bias": torch.zeros(2)}
    save_file(state, folder / "linear.safetensors")
    ratio = np.abs(weight).sum() / np.sqrt((weight**2).sum())
    distances = {"linf": np.where(wrong, -1, linf), "l2": np.where(wrong, -1, linf * ratio)}
    return folder / "linear.npz", folder / "linear.safetensors", distances


class Halting(StandardModule):
    """Waits forever in the pass numbered by ``HALT_AT_PASS``, once it has said so with a file in ``HALT_FOLDER``."""

    passes = 0

    def forward(self, images, rng=None):
        self.passes += 1
        if self.passes == int(os.environ.get("HALT_AT_PASS", 0)):
            Path(os.environ["HALT_FOLDER"], f"halted_{os.getpid()}").touch()
            time.sleep(3600)
        return super().forward(images, rng)
