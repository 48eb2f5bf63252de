"""JPEG: compression by a real codec."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor, nn
from torchvision.io import decode_jpeg, encode_jpeg

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.rng import SampleRNG


class DifferentiableJPEG(nn.Module):
    """kornia's differentiable codec, whose rounding is a polynomial.

    Source: Reich et al., 2024, https://arxiv.org/abs/2309.06978; Shin and Song, 2017. Chroma is subsampled as 4:2:0, as
    by the real codec. Gray images are coded in three equal channels.

    Args:
        quality: From 1 to 100.
    """

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def extra_repr(self) -> str:
        """The quality."""
        return f"quality={self.quality}"

    def forward(self, images: Tensor) -> Tensor:
        """Coded and decoded images ``(N, C, H, W)`` of one or three channels."""
        colours = images.expand(-1, 3, -1, -1)
        coded: Tensor = jpeg_codec_differentiable(colours, images.new_tensor([float(self.quality)]))
        return coded if images.shape[1] == 3 else coded.mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class JPEG(Purifier):
    """JPEG compression of pixels rounded to 8 bits, one or three channels.

    Source: Dziugaite et al., 2016, https://arxiv.org/abs/1608.00853; Guo et al., 2018, https://arxiv.org/abs/1711.00117,
    with quality 75. The codec is libjpeg as torchvision brings it, on the CPU: chroma subsampled as 4:2:0. Attackers
    differentiate :class:`DifferentiableJPEG` in its place.

    Args:
        quality: From 1 to 100.

    Raises:
        ValueError: If quality is out of range, or images have another number of channels.
    """

    quality: int = 75

    untraceable = "its codec is no operation on tensors"

    def __post_init__(self) -> None:
        """Checks the quality."""
        if not 1 <= self.quality <= 100:
            raise ValueError(f"JPEG takes a quality from 1 to 100, got {self.quality}")

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Coded and decoded images."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"JPEG codes images of 1 or 3 channels, got {images.shape[1]}: choose another purifier")
        if not len(images):
            return images.clone()
        pixels = (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        coded = torch.stack([decode_jpeg(encode_jpeg(image, self.quality)) for image in pixels])
        return coded.to(images) / 255

    def stand_in(self) -> nn.Module:
        """The differentiable codec of the same quality."""
        return DifferentiableJPEG(self.quality)
