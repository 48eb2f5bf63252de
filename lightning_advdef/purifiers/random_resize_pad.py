"""RandomResizePad: a random size at a random place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.rng import SampleRNG


@dataclass(frozen=True)
class RandomResizePad(Purifier):
    """Resizes each image to a random size and pads it with zeros, at random on its four sides.

    Source: Xie et al., 2018, https://arxiv.org/abs/1711.01991, who enlarge images of 299 pixels to 299 up to 330 and
    pad them to 331. Resized by the nearest pixel, as in the authors' code, but not mirrored at random as there.

    Args:
        smallest: Smallest share of the padded image that the resized one may take along each side.

    Raises:
        ValueError: If smallest does not lie between 0 and 1.

    Note:
        The padded image keeps the size of the given one, since not every network takes another: images shrink, to the
        shares 299/331 up to 1 (exclusive) that the paper has, where the paper's grow.
    """

    smallest: float = 299 / 331

    stochastic = True
    differentiable = True

    def __post_init__(self) -> None:
        """Checks the share."""
        if not 0 < self.smallest < 1:
            raise ValueError(f"RandomResizePad takes smallest between 0 and 1, got {self.smallest}")

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Images of the same size with a smaller copy in each."""
        share, *places = rng.stream("resize_pad").uniform(3).unsqueeze(2).unbind(dim=1)
        rows, columns = (self._sources(size, share, at) for size, at in zip(images.shape[2:], places, strict=True))
        inside = (rows >= 0).unsqueeze(2) & (columns >= 0).unsqueeze(1)
        index = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        # indices on both sides of a slice put the channels last
        found = images[index, :, rows.clamp(min=0).unsqueeze(2), columns.clamp(min=0).unsqueeze(1)]
        return (found * inside.unsqueeze(3)).permute(0, 3, 1, 2).contiguous()

    def _sources(self, size: int, share: Tensor, place: Tensor) -> Tensor:
        """Position in the given image for each one in the padded image, -1 in the padding, int64, shape ``(N, size)``.

        Args:
            size: Pixels along this side.
            share: Random numbers for the resized length, shape ``(N, 1)``.
            place: Random numbers for the padding before it, shape ``(N, 1)``.
        """
        shortest = min(max(1, int(self.smallest * size)), size - 1)
        length = shortest + (share * (size - shortest)).long()
        before = (place * (size - length + 1)).long()
        position = torch.arange(size, device=share.device) - before
        return torch.where((position >= 0) & (position < length), position * size // length, -1)
