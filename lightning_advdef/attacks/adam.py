"""Adam with one optimiser per image."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_advdef.attacks.lp_ball import per_image

_FIRST, _SECOND = 0.9, 0.999  # the authors' decay rates of the two moments
_TINY = 1e-8


class ImageAdam:
    """Adam whose moments and clock belong to each image, so that one may start afresh while its neighbours go on.

    Source: Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980, algorithm 1 in the order of its section 2.

    Args:
        like: What is optimised, shape ``(N, C, H, W)``.
        learning_rate: Step size (alpha).
    """

    def __init__(self, like: Tensor, learning_rate: float) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.clock = like.new_zeros(len(like))
        self.learning_rate = learning_rate

    def __getitem__(self, rows: Tensor) -> ImageAdam:
        """The optimisers of some of the images."""
        chosen = ImageAdam(self.first[:0], self.learning_rate)
        chosen.first, chosen.second, chosen.clock = self.first[rows], self.second[rows], self.clock[rows]
        return chosen

    def restart(self, mask: Tensor) -> None:
        """Forgets all about the images of a mask, bool, shape ``(N,)``."""
        self.first.masked_fill_(per_image(mask), 0.0)
        self.second.masked_fill_(per_image(mask), 0.0)
        self.clock.masked_fill_(mask, 0.0)

    def step(self, gradient: Tensor) -> Tensor:
        """What to add so that a loss with this gradient falls, shape ``(N, C, H, W)``."""
        self.clock += 1
        self.first.lerp_(gradient, 1 - _FIRST)
        self.second.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
        unbias = (1 - _SECOND**self.clock).sqrt()
        length = -self.learning_rate * unbias / (1 - _FIRST**self.clock)
        return self.first / (self.second.sqrt().add_(per_image(unbias * _TINY))) * per_image(length)
