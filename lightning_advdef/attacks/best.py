"""Which iterate an attack returns for each image, and which images still need work."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS_BETWEEN_SYNCS = 5


def steps_between_syncs(images: Tensor) -> int:
    """After how many steps to see which images may leave: it copies from the device, dearer than a few rows there."""
    return 1 if images.device.type == "cpu" else _STEPS_BETWEEN_SYNCS


class BestIterates:
    """Keeps one iterate per image.

    Where the surrogate is exact (see :class:`Surrogate`), the first iterate that is misclassified is final. Elsewhere
    the iterate of highest loss is kept, because returning the weakest one would flatter a defense that is only
    approximated by its surrogate.

    Args:
        images: Clean images, shape ``(N, C, H, W)``; what is returned where nothing was found.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.loss = images.new_full((len(images),), float("-inf"))
        self.decided = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def open_rows(self, compact: bool) -> Tensor:
        """Positions of the images to work on, int64: those not decided, or all if none may leave the batch."""
        rows = torch.arange(len(self.decided), device=self.decided.device)
        return rows[~self.decided] if compact else rows

    def update(self, rows: Tensor, iterates: Tensor, loss: Tensor, final: Tensor) -> None:
        """Offers one iterate for each of some images.

        Args:
            rows: Positions of the images, int64, shape ``(M,)``, each at most once.
            iterates: Shape ``(M, C, H, W)``.
            loss: The attack's loss of each iterate, shape ``(M,)``.
            final: Whether it decides its image, see :meth:`Surrogate.final`, shape ``(M,)``.
        """
        better = (final | (loss > self.loss[rows])) & ~self.decided[rows]
        self.images[rows] = torch.where(better.view(-1, 1, 1, 1), iterates, self.images[rows])
        self.loss[rows] = torch.where(better, loss, self.loss[rows])
        self.decided[rows] |= final
