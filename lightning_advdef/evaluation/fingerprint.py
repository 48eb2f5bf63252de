"""What makes a result what it is: configuration, weights, data, code. Devices and loaders are not part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sized
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_advdef.checkpoints import plain, tensor_bytes, weights_hash
from lightning_advdef.data.sources import FileImages, ImageDataset, MemoryImages
from lightning_advdef.evaluation.description import describe_network
from lightning_advdef.evaluation.judge import Judge
from lightning_advdef.hashing import code_hash

_FOREIGN_SAMPLES = 32  # items of a data set of unknown kind that are hashed
_CHUNK = 1024  # images that are turned into floats at once


def data_hash(dataset: Any) -> str | None:
    """SHA-256 over the test images.

    Pixels are hashed as :func:`described_images` does, whatever data module holds them and as which type. Image files
    are taken by name and size; of a data set that is not ours, its length and a few items, or all if they are tensors
    in memory; None if it cannot be indexed.
    """
    digest = hashlib.sha256()
    if isinstance(dataset, ImageDataset):
        _update_with_images(digest, dataset)
    elif isinstance(dataset, TensorDataset):
        for tensor in dataset.tensors:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor_bytes(tensor))
    elif isinstance(dataset, Sized) and hasattr(dataset, "__getitem__"):
        digest.update(str(len(dataset)).encode())
        for index in range(0, len(dataset), max(1, len(dataset) // _FOREIGN_SAMPLES)):
            for part in dataset[index]:
                digest.update(tensor_bytes(torch.as_tensor(part)))
    else:
        return None
    return digest.hexdigest()


def _update_with_images(digest: Any, dataset: ImageDataset) -> None:
    source = dataset.source
    tensors: Iterable[Tensor] = [dataset.indices, source.labels[dataset.indices]]
    if isinstance(source, MemoryImages):
        # lazily, since as float32 a whole split is four times as large
        tensors = chain(tensors, map(source.read, torch.split(dataset.indices, _CHUNK)))
    elif isinstance(source, FileImages):
        paths = [Path(source.paths[row]) for row in dataset.indices.tolist()]
        digest.update("".join(f"{path.parent.name}/{path.name} {path.stat().st_size}\n" for path in paths).encode())
    for tensor in tensors:
        digest.update(tensor_bytes(tensor))


def fingerprint(data: Mapping[str, Any], module: nn.Module, judge: Judge) -> dict[str, Any]:
    """Plain values that are equal exactly if two evaluations are the same.

    Args:
        data: What :func:`described_loader` or :func:`described_images` say of the images.
        module: The network or defense.
        judge: What judges it.
    """
    settings = asdict(judge.settings)
    if not judge.settings.strict:
        settings.pop("batch_size")
    return {
        "data": {**data, "mean_image": None if judge.mean_image is None else _hash(judge.mean_image)},
        **describe_network(module),
        "weights": weights_hash(module),
        "evaluation": {**settings, "scenarios": judge.describe()},
        "code": code_hash(module, *_attackers(judge)),
    }


def described_loader(trainer: Trainer, loader: Any, limit: int | float) -> dict[str, Any]:
    """The images of a Trainer's loader as plain values.

    Args:
        trainer: Who reads them.
        loader: Of the test or the prediction.
        limit: How many batches of it are read, as Lightning counts them.
    """
    data = getattr(trainer, "datamodule", None)
    named = {name: getattr(data, name) for name in ("spec", "limit", "seed") if hasattr(data, name)}
    images = data_hash(getattr(loader, "dataset", None))
    described = {"class": type(data).__qualname__, **plain(named), "images": images, "batches": limit}
    if not all_batches(limit):
        size = getattr(loader, "batch_size", None) or getattr(
            getattr(loader, "batch_sampler", None), "batch_size", None
        )
        described["batch_size"] = size and size * trainer.world_size
    return described


def all_batches(limit: int | float) -> bool:
    """Whether a Trainer's limit lets every batch through: an int counts batches, 1.0 means all of them."""
    return isinstance(limit, float) and limit == 1


def described_images(images: Tensor, labels: Tensor, indices: Tensor) -> dict[str, Any]:
    """Images in memory as plain values; see :class:`Batch` for the shapes."""
    return {"class": "Tensor", "images": _hash(indices, labels, images)}


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _attackers(judge: Judge) -> list[object]:
    """Attacks, their parts, surrogates, and the networks that these differentiate."""
    attacks = [runner.scenario.attack for runner in judge.runners.values()]
    parts = [part for attack in attacks for part in attack.parts().values()]
    surrogates = [runner.surrogate for runner in judge.runners.values()]
    return [*attacks, *parts, *surrogates, *(module for surrogate in surrogates for module in surrogate.modules)]
