"""Training images as they are, with noise and under attack, and what a purifier makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_advdef.attacks import BPDA, PGD, Noise, Undefended
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.checkpoints import tensor_bytes
from lightning_advdef.data import DataModule
from lightning_advdef.defenses import DefenseModule
from lightning_advdef.evaluation.cache import AdversarialCache, network_key
from lightning_advdef.hashing import code_hash
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Eps

_STEPS = 10


class Pairs(NamedTuple):
    """What a stand-in is fitted to; versions of an image lie along the first dimension.

    Attributes:
        images: Clean, with uniform noise, and under attack, shape ``(3, N, C, H, W)``.
        purified: What the purifier made of each, same shape.
    """

    images: Tensor
    purified: Tensor


class PairMaker:
    """Runs the deployed purifier of a defense, and keeps what it made.

    A batch is stored under a hash of the defense with its settings and weights, the noise, the images, their random
    numbers and the source of this package; so an interruption costs a batch at most, and nothing made by another
    recipe is used.

    Args:
        defense: A defense with a purifier, its weights loaded.
        noise: Largest change of a pixel, for the noise and for PGD on the undefended classifier.
        folder: Where the batches are kept.

    Raises:
        ValueError: If the defense has no purifier.
    """

    def __init__(self, defense: DefenseModule, noise: Eps, folder: str | Path) -> None:
        if type(defense).purify is DefenseModule.purify:
            raise ValueError(
                f"{type(defense).__name__} has no purifier that could be distilled: give a configuration of a "
                "test-time defense, such as one of configs/purification"
            )
        self.defense, self.noise = defense, Eps(noise)
        self.cache = AdversarialCache(folder)
        self._deployed, self._gray = BPDA(defense), Undefended(defense)
        self._recipe = f"{code_hash(defense)} {network_key(defense)} {self.noise}"

    def make(self, data: DataModule, count: int, batch_size: int, report: Callable[[int], None]) -> Pairs:
        """Pairs of at most ``count`` training images; ``report`` hears how many images are done.

        Which images are taken follows from their number alone, as for ``limit_train`` of the data, which holds, too.
        """
        data.limit_train = min(count, data.limit_train or count)
        data.batch_size = batch_size
        data.prepare_data()
        data.setup("fit")
        found: list[Pairs] = []
        for batch in data.train_dataloader():
            found.append(self.of(batch))
            report(sum(pairs.images.shape[1] for pairs in found))
        images, purified = zip(*found, strict=True)
        return Pairs(torch.cat(images, dim=1), torch.cat(purified, dim=1))

    def of(self, batch: Batch) -> Pairs:
        """Pairs of one batch, made or read, on the CPU."""
        rng = SampleRNG.for_images(batch.indices, split="distill")
        key = self._key(batch, rng)
        stored = self.cache.load(key, torch.device("cpu"))
        if stored is not None:
            return Pairs(stored[0], stored[1]["purified"])
        pairs = self._make(Batch(*(tensor.to(self.defense.device) for tensor in batch)), rng)
        self.cache.save(key, pairs.images, {"purified": pairs.purified})
        return pairs

    def _key(self, batch: Batch, rng: SampleRNG) -> str:
        digest = hashlib.sha256(json.dumps(self._recipe).encode())
        for tensor in (batch.images, batch.labels, rng.keys):
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()

    def _make(self, batch: Batch, rng: SampleRNG) -> Pairs:
        rng = SampleRNG(rng.keys.to(batch.images.device), rng.rows.to(batch.images.device))
        attacks = Noise(self.noise), PGD(self.noise, steps=_STEPS)
        versions = [batch.images, *(attack(self._gray, batch.images, batch.labels, rng) for attack in attacks)]
        draws = SampleRNG.cat([rng.stream("version", number) for number in range(len(versions))])
        images = torch.cat(versions)
        with attack_mode(*self._deployed.modules):
            purified = self._deployed.deployed(images, draws)
        if purified.shape != images.shape:
            raise ValueError(
                f"{type(self.defense).__name__} purifies images of shape {tuple(images.shape[1:])} to "
                f"{tuple(purified.shape[1:])}, and a stand-in keeps the shape: there is none to be distilled"
            )
        shape = (len(versions), len(batch.images), *images.shape[1:])
        return Pairs(images.cpu().view(shape), purified.cpu().view(shape))
