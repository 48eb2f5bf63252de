"""The networks under attack, each with its test images and budgets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from lightning_advdef.checkpoints import load_defense
from lightning_advdef.data import CIFAR10, MNIST, DataModule, ImageFolder
from lightning_advdef.types import Batch, Norm


@dataclass(frozen=True)
class Known:
    """What is known of a network before it is loaded.

    Attributes:
        data: ``mnist`` or ``cifar10``.
        robust: Whether it was trained on adversarial images: most images then survive.
        eps: Budgets.
    """

    data: str
    robust: bool
    eps: Mapping[Norm, float]


NETWORKS = {
    "mnist_lenet_reference": Known("mnist", False, {"linf": 0.3, "l2": 2.0}),
    "mnist_lenet_adversarial": Known("mnist", True, {"linf": 0.2, "l2": 1.0}),
    "cifar10_resnet_standard": Known("cifar10", False, {"linf": 8 / 255, "l2": 0.5}),
    "cifar10_resnet_adversarial": Known("cifar10", True, {"linf": 8 / 255, "l2": 0.5}),
}


class Target(NamedTuple):
    """A network under attack, with the images it is attacked on.

    Attributes:
        name: In ``NETWORKS``.
        known: What is known of it.
        network: The bare classifier.
        batch: Test images.
    """

    name: str
    known: Known
    network: nn.Module
    batch: Batch


def load_target(entry: str, count: int, device: str) -> Target:
    """The target of ``name`` or ``name=checkpoint``, on the device."""
    name, _, path = entry.partition("=")
    if name not in NETWORKS:
        raise ValueError(f"networks are {', '.join(NETWORKS)}, got {name!r}")
    known = NETWORKS[name]
    batch = Batch(*(tensor.to(device) for tensor in load_images(known.data, count)))
    return Target(name, known, load_network(name, path or None).to(device), batch)


def load_network(name: str, path: str | None = None) -> nn.Module:
    """The bare classifier in eval mode, from ``checkpoints/<name>.ckpt`` unless another file is given."""
    network: nn.Module = load_defense(path or Path("checkpoints") / f"{name}.ckpt").undefended
    return network.eval()


def load_images(data: str, count: int) -> Batch:
    """So many test images, a random choice that is always the same."""
    module = data_of(data, count, count)
    module.setup("test")
    batch: Batch = next(iter(module.test_dataloader()))
    return batch


def data_of(data: str, batch_size: int, limit: int) -> DataModule:
    """MNIST at ``$ADVDEF_DATA`` (default ``data``); CIFAR-10 there too, or as an image folder at ``$ADVDEF_CIFAR``."""
    root, folder = os.environ.get("ADVDEF_DATA", "data"), os.environ.get("ADVDEF_CIFAR")
    if data == "mnist":
        return MNIST(root, batch_size=batch_size, limit=limit)
    if folder:
        return ImageFolder(spec="cifar10", root=folder, batch_size=batch_size, limit=limit, cache=False)
    return CIFAR10(root, batch_size=batch_size, limit=limit)
