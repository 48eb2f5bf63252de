"""The books of an attack: what it spent on each image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Passes:
    """What was spent on each image of a batch, int64, shape ``(N,)`` each.

    Attributes:
        forward: Forward passes.
        backward: Backward passes.
        zero_gradients: Gradients that were zero in every pixel: an attack that gets them has not attacked.
    """

    forward: Tensor
    backward: Tensor
    zero_gradients: Tensor
