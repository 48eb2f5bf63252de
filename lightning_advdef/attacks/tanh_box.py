"""Pixels between bounds as the tanh of variables without any."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Share of the tanh's range that the pixels take. At 1 a black pixel would lie at infinity; at the 0.999999 of the
# authors' code it lies so far out that Adam needs more than 600 steps of 0.01 to lift it by 0.1, here 60.
_SHARE = 0.9
_LARGEST = math.atanh(_SHARE)
_TINY = 1e-12


@dataclass(frozen=True)
class TanhBox:
    """Change of variables ``pixels = middle + half * tanh(variables) / 0.9``, within bounds that are never left.

    Source: Carlini and Wagner, 2017, https://arxiv.org/abs/1608.04644, section V-B. There the tanh runs over its whole
    range, so that its slope vanishes at the bounds; here it is cut off a little before, and variables are clamped.

    Attributes:
        middle: Middle between the bounds, broadcasting over images ``(N, C, H, W)``.
        half: Half the distance between them, likewise.
        bounded: ``False`` takes the tangent in the middle instead of the tanh: the same scale, without bounds.
    """

    middle: Tensor
    half: Tensor
    bounded: bool = True

    @classmethod
    def between(cls, low: Tensor, high: Tensor, bounded: bool = True) -> TanhBox:
        """The box between two bounds of each pixel."""
        return cls((low + high) / 2, ((high - low) / 2).clamp_min(_TINY), bounded)

    def __getitem__(self, rows: Tensor) -> TanhBox:
        """The boxes of some of the images; bounds that are the same for all stay as they are."""
        middle, half = (bound[rows] if bound.dim() else bound for bound in (self.middle, self.half))
        return TanhBox(middle, half, self.bounded)

    def variables(self, pixels: Tensor) -> Tensor:
        """The variables that stand for some pixels."""
        unit = (pixels - self.middle) / self.half
        return (unit * _SHARE).clamp(-_SHARE, _SHARE).atanh() if self.bounded else unit * _SHARE

    def pixels(self, variables: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels that variables stand for, and their slopes, up to a factor that all pixels share."""
        if not self.bounded:
            return self.middle + self.half * (variables / _SHARE), torch.ones_like(variables)
        tanh = variables.tanh()
        return self.middle + self.half * (tanh / _SHARE), torch.addcmul(torch.ones_like(tanh), tanh, tanh, value=-1)

    def keep(self, variables: Tensor) -> Tensor:
        """Variables whose pixels lie between the bounds; in place."""
        return variables.clamp_(-_LARGEST, _LARGEST) if self.bounded else variables
