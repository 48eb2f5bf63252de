"""The smallest perturbation that a search has come by, for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_advdef.attacks.lp_ball import per_image


class Smallest:
    """Keeps the nearest point that reached the goal, other than the image itself.

    Args:
        images: Clean images, shape ``(N, C, H, W)``.
        enough: An image is done once its perturbation is at most this; negative for never.

    Attributes:
        images: What is returned, shape ``(N, C, H, W)``: the clean image where nothing was found.
        sizes: Norm of its perturbation, shape ``(N,)``; infinite where nothing was found.
        done: Images that need no further search, bool, shape ``(N,)``.
    """

    def __init__(self, images: Tensor, enough: float = -1.0) -> None:
        self.images, self.enough = images.clone(), enough
        self.sizes = images.new_full((len(images),), float("inf"))
        self.done = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def update(self, rows: Tensor, points: Tensor, sizes: Tensor, fooled: Tensor) -> None:
        """Offers one point for each of some images.

        Args:
            rows: Positions of the images, int64, shape ``(M,)``, each at most once.
            points: Shape ``(M, C, H, W)``.
            sizes: Norm of their perturbations, shape ``(M,)``.
            fooled: Whether they reach the goal, see :meth:`Surrogate.fooled`, shape ``(M,)``.
        """
        closer = fooled & (sizes < self.sizes[rows]) & (sizes > 0)
        self.images[rows] = torch.where(per_image(closer), points, self.images[rows])
        self.sizes[rows] = torch.where(closer, sizes, self.sizes[rows])
        self.done[rows] |= closer & (sizes <= self.enough)
