"""The smallest perturbation that a search has come by, for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_advdef.attacks.lp_ball import per_image


class SmallestFooled:
    """Keeps the nearest iterate that reached the goal.

    Attributes:
        images: What is returned, shape ``(N, C, H, W)``: the clean image where nothing was found.
        sizes: Norm of its perturbation, shape ``(N,)``; infinite where nothing was found.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.sizes = images.new_full((len(images),), float("inf"))

    def update(self, iterates: Tensor, sizes: Tensor, fooled: Tensor) -> None:
        """Offers one iterate for each image.

        Args:
            iterates: Shape ``(N, C, H, W)``.
            sizes: Norm of their perturbations, shape ``(N,)``.
            fooled: Whether they reach the goal, see :meth:`Surrogate.fooled`, shape ``(N,)``.
        """
        smaller = fooled & (sizes < self.sizes)
        self.sizes = torch.where(smaller, sizes, self.sizes)
        self.images = torch.where(per_image(smaller), iterates, self.images)
