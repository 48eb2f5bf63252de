"""Networks that add a correction to an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_advdef.types import ImageSpec


class Denoiser(nn.Module, ABC):
    """Base of the denoisers that stand before a classifier."""

    def forward(self, images: Tensor) -> Tensor:
        """Denoised images ``(N, C, H, W)`` of the same shape; they may leave [0, 1]."""
        return images + self.residual(images)

    @abstractmethod
    def residual(self, images: Tensor) -> Tensor:
        """What is added to images ``(N, C, H, W)``, same shape."""


DenoiserFactory = Callable[[ImageSpec], Denoiser]


def join(maps: Tensor, lower: Tensor) -> Tensor:
    """Along the channels, the lower resolution doubled, bilinear with aligned corners."""
    doubled = F.interpolate(lower, scale_factor=2, mode="bilinear", align_corners=True)
    return torch.cat([maps, doubled], dim=1)
