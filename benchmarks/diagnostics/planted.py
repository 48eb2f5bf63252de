"""Defenses that only hide their weakness, each in a way of its own, before or behind a trained network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Planted(nn.Module):
    """Images to logits; the network itself is as weak as it was."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(images)
        return logits


class SignQuantised(Planted):
    """Pixels become black or white: the gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return super().forward((images - 0.5).sign() / 2 + 0.5)


class SaturatedLogits(Planted):
    """Probabilities that float32 rounds to 0 and 1 take the place of the logits, moved so that nobody sees it."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        # no loss and no margin changes by a constant, but as they are they would be refused
        return (50 * super().forward(images)).softmax(dim=1) - 0.5


class Cold(Planted):
    """Logits at temperature 1e-3, whose cross-entropy is flat wherever the answer is right."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return super().forward(images) / 1e-3


class Detached(Planted):
    """The gradient is cut on the way."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return super().forward(images.detach())


class RandomResize(Planted):
    """Images are made smaller by a random amount and put in a random place, which nobody was told."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        size = images.shape[-1]
        smaller = int(torch.randint(size - size // 4, size, ()))
        left, top = (int(torch.randint(0, size - smaller + 1, ())) for _ in range(2))
        resized = F.interpolate(images, size=(smaller, smaller), mode="bilinear", align_corners=False)
        return super().forward(F.pad(resized, (left, size - smaller - left, top, size - smaller - top)))


class Shattered(Planted):
    """A ripple too fine to see turns the gradient from one pixel value to the next."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return super().forward(images + 0.02 * torch.sin(2000 * images))


PLANTED: tuple[type[Planted], ...] = (SignQuantised, SaturatedLogits, Cold, Detached, RandomResize, Shattered)
