"""Adversarial training images that are made once, from the starting weights, and kept on disk."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_advdef.attacks import Attack, FullGradient
from lightning_advdef.checkpoints import plain, tensor_bytes, weights_hash
from lightning_advdef.data.sources import ImageDataset, MemoryImages
from lightning_advdef.rng import SampleRNG

_ATTACKED_AT_ONCE = 256


class FixedExamples:
    """The adversarial image of each training image.

    Args:
        indices: Positions of the images in the training set, int64, ascending, shape ``(N,)``.
        images: Adversarial images in the same order, float32 (8 bits would round DeepFool's away), ``(N, C, H, W)``.
    """

    def __init__(self, indices: Tensor, images: Tensor) -> None:
        self.indices = indices
        self.images = images

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Adversarial images of the images at ``indices``, on their device."""
        rows = torch.searchsorted(self.indices, indices.cpu())
        return self.images[rows].to(indices.device)


def load_or_make(trainer: Trainer, network: nn.Module, attack: Attack, seed: int) -> FixedExamples:
    """Reads the set from the run's folder, or makes it first; the first process works, others wait.

    Args:
        trainer: Its data module has the images, its ``default_root_dir`` takes the file, whose name is a hash of
            weights, attack, images and seed.
        network: Attacked in eval mode in float32 (a copy of it is); starts the fine-tuning.
        attack: What makes the images.
        seed: Of a random attack.

    Raises:
        ValueError: If training images are not the same in every epoch.
    """
    dataset = _training_set(trainer)
    indices = dataset.indices.sort().values
    key = _key(network, attack, dataset, indices, seed)
    path = Path(trainer.default_root_dir) / f"fixed_examples_{key}.safetensors"
    if trainer.is_global_zero and not path.is_file():
        print(f"making {len(indices)} adversarial training images: {path}")
        target = copy.deepcopy(network).to(trainer.strategy.root_device)
        images = _attacked(target, attack, ImageDataset(dataset.source, indices), seed)
        _save(images, path)
    trainer.strategy.barrier("fixed_examples")
    return FixedExamples(indices, load_file(path)["images"])


def _training_set(trainer: Trainer) -> ImageDataset:
    data: Any = getattr(trainer, "datamodule", None)
    dataset = None if data is None else data.train_dataloader().dataset
    if (
        not isinstance(dataset, ImageDataset)
        or not isinstance(dataset.source, MemoryImages)
        or getattr(data, "augment", "none") != "none"
    ):
        raise ValueError(
            "fixed adversarial images need training images that are the same in every epoch: use a data module of "
            "this package that holds its images in memory, with --data.augment none"
        )
    return dataset


def _key(network: nn.Module, attack: Attack, dataset: ImageDataset, indices: Tensor, seed: int) -> str:
    source = dataset.source
    assert isinstance(source, MemoryImages)
    digest = hashlib.sha256(json.dumps([weights_hash(network), plain(attack), seed], sort_keys=True).encode())
    for tensor in (indices, source.pixels, source.labels):
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:16]


def _attacked(network: nn.Module, attack: Attack, dataset: ImageDataset, seed: int) -> Tensor:
    surrogate = FullGradient(network)
    surrogate.strongest = True
    device = next(network.parameters()).device
    parts = []
    for positions in torch.split(torch.arange(len(dataset)), _ATTACKED_AT_ONCE):
        images, labels, indices = (tensor.to(device) for tensor in dataset.__getitems__(positions.tolist()))
        rng = SampleRNG.for_images(indices, seed, "train")
        parts.append(attack(surrogate, images, labels, rng).cpu())
    return torch.cat(parts)


def _save(images: Tensor, path: Path) -> None:
    """Under another name first: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file({"images": images.contiguous()}, unfinished)
    os.replace(unfinished, path)
