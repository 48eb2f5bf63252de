"""Crop and flip of a whole batch by one gather, on the device of the images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_advdef.rng import SampleRNG

Augment = Literal["none", "flip", "crop", "crop_flip"]

# He et al., 2016, https://arxiv.org/abs/1512.03385, section 4.2: four zeros on each side, then a random crop
CROP_PADDING = 4


def crop_and_flip(images: Tensor, rng: SampleRNG, *, padding: int = CROP_PADDING, flip: bool = True) -> Tensor:
    """Shifts each image at random within zero padding and mirrors half of them left to right.

    What happens to an image depends on its rng alone, not on its batch. One gather costs about a quarter of what
    kornia's crop and flip cost (``benchmarks/bench_data.py``).

    Args:
        images: Pixels, shape ``(N, C, H, W)``.
        rng: One key per image.
        padding: Largest shift in pixels; 0 leaves out the crop.
        flip: Whether to mirror.

    Returns:
        New images of the same shape.
    """
    positions = 2 * padding + 1
    # an even range, so that the same three numbers serve two shifts (modulo positions) and a coin (modulo 2)
    draws = rng.integers(3, high=2 * positions)
    shifts = draws[:, :2] % positions
    rows = torch.arange(images.shape[2], device=images.device) + shifts[:, :1]
    columns = torch.arange(images.shape[3], device=images.device)
    if flip:
        columns = torch.where(draws[:, 2:] % 2 == 1, columns.flip(0), columns)
    columns = columns + shifts[:, 1:]
    padded = F.pad(images, (padding,) * 4)
    pixels = (rows.unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)).flatten(1)
    return padded.flatten(2).gather(2, pixels.unsqueeze(1).expand(-1, images.shape[1], -1)).view_as(images)


def augment(images: Tensor, rng: SampleRNG, how: Augment) -> Tensor:
    """Applies what ``how`` names; ``none`` gives the images back."""
    if how == "none":
        return images
    return crop_and_flip(images, rng, padding=CROP_PADDING if "crop" in how else 0, flip="flip" in how)
