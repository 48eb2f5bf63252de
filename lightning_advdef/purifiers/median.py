"""Median: the median of each pixel's neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.rng import SampleRNG

_WINDOW_VALUES = 1 << 24  # in memory together: those of as many images as stay below it, but at least one


@dataclass(frozen=True)
class Median(Purifier):
    """Median filter of a square window, each channel by itself.

    Source: Xu et al., 2018, https://arxiv.org/abs/1704.01155, section III-B, who take windows of 2 and 3 and mirrored
    borders. An even window reaches further up and left, and gives the larger of the two middle values, as SciPy does.
    The gradient goes to the pixel that was chosen.

    Args:
        kernel: Side of the window in pixels.
        padding: Beyond the border are zeros, or the image mirrored, with its outermost pixels repeated.

    Raises:
        ValueError: If kernel is below 2.
    """

    kernel: int = 3
    padding: Literal["zeros", "mirror"] = "zeros"

    differentiable = True

    def __post_init__(self) -> None:
        """Checks the window."""
        if self.kernel < 2:
            raise ValueError(f"Median needs a kernel of at least 2 pixels, got {self.kernel}")

    def __call__(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Filtered images."""
        together = max(1, _WINDOW_VALUES // (images[:1].numel() * self.kernel**2 or 1))
        return torch.cat([self._filtered(some) for some in torch.split(images, together)])

    def _filtered(self, images: Tensor) -> Tensor:
        windows = self._padded(images).unfold(2, self.kernel, 1).unfold(3, self.kernel, 1)
        windows = windows.flatten(4)
        upper = (self.kernel**2 + 1) // 2  # the median and all above it; unlike kthvalue, ONNX knows topk
        # its gradient would keep the places of all of them
        middle = windows.detach().topk(upper, dim=4).indices[..., -1:]
        return windows.gather(4, middle).squeeze(4)

    def _padded(self, images: Tensor) -> Tensor:
        before, after = self.kernel // 2, (self.kernel - 1) // 2
        if self.padding == "zeros":
            return F.pad(images, (before, after, before, after))
        rows, columns = (_mirrored(size, before, after, images.device) for size in images.shape[2:])
        return images[:, :, rows][:, :, :, columns]


def _mirrored(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Positions 0 to size - 1 with their mirror images around them, shape ``(before + size + after,)``."""
    positions = torch.arange(-before, size + after, device=device) % (2 * size)
    return torch.minimum(positions, 2 * size - 1 - positions)
