"""Small networks trained on the handwritten digits, plainly and on adversarial images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from lightning_advdef.attacks import PGD
from lightning_advdef.data import Digits
from lightning_advdef.types import Batch

Activation = Callable[[], nn.Module]
EPS = 0.1


def digits(split: str) -> Batch:
    """All training or test images."""
    data = Digits(batch_size=2000, val_fraction=0)
    data.setup("fit" if split == "train" else "test")
    dataset = data.train_dataloader().dataset if split == "train" else data.test_dataloader().dataset
    found: Batch = dataset.__getitems__(list(range(len(dataset))))  # type: ignore[attr-defined,arg-type]
    return found


def perceptron(width: int, activation: Activation) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, 10),
    )


def convolutional(width: int, activation: Activation) -> nn.Module:
    """Two convolutions and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        activation(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        activation(),
        nn.Flatten(),
        nn.Linear(32 * width, 10),
    )


def trained(network: nn.Module, robust: bool = False, epochs: int = 20) -> nn.Module:
    """The network after some epochs of Adam, in eval mode.

    Args:
        network: Images ``(N, 1, 8, 8)`` to logits.
        robust: Train on images perturbed by five steps of PGD at l_inf 0.1.
        epochs: Passes over the training images.
    """
    images, labels, _ = digits("train")
    attack = PGD(eps=EPS, steps=5)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            given = attack(network, images[rows], labels[rows]) if robust else images[rows]
            network.train()
            loss = F.cross_entropy(network(given), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()
