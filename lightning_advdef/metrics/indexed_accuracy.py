"""Accuracy in which no image counts twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class IndexedAccuracy(Metric):
    """Accuracy over image indices: an image that comes several times counts once.

    Distributed samplers fill up the last batches with repeated images, which biases an ordinary mean. If answers for
    the same image differ, the image counts with their mean. Processes may hold different numbers of images, or none.

    As a metric it takes:
        predictions: Classes, int64, shape ``(N,)``, or logits, shape ``(N, K)``.
        labels: True classes, int64, shape ``(N,)``.
        indices: Position of each image in its full split, int64, shape ``(N,)``.

    It gives the accuracy in [0, 1], a scalar; NaN before any image.

    Example:
        >>> metric = IndexedAccuracy()
        >>> metric.update(torch.tensor([1, 0, 0]), torch.tensor([1, 1, 1]), torch.tensor([7, 8, 8]))
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    indices: list[Tensor]
    correct: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("indices", default=[], dist_reduce_fx="cat")
        self.add_state("correct", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Adds a batch.

        Raises:
            ValueError: If the three do not have one entry per image.
        """
        classes = predictions.argmax(dim=1) if predictions.ndim == 2 else predictions
        if not classes.shape == labels.shape == indices.shape:
            raise ValueError(
                "predictions, labels and indices need one entry per image, "
                f"got shapes {tuple(predictions.shape)}, {tuple(labels.shape)}, {tuple(indices.shape)}"
            )
        self.indices.append(indices.long())
        self.correct.append((classes == labels).long())

    def compute(self) -> Tensor:
        """Mean over distinct indices."""
        if len(self.indices) == 0:
            return torch.tensor(torch.nan, device=self.device)
        distinct, position = torch.unique(dim_zero_cat(self.indices), return_inverse=True)
        times = position.bincount(minlength=len(distinct))
        right = torch.zeros_like(times).index_add(0, position, dim_zero_cat(self.correct))
        accuracy: Tensor = (right / times).mean()
        return accuracy

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers all processes' images.

        For a process without images torchmetrics would send an empty float tensor among the others' int64.
        """
        if isinstance(self.indices, list) and not self.indices:
            self.indices = [torch.empty(0, dtype=torch.int64, device=self.device)]
            self.correct = [torch.empty(0, dtype=torch.int64, device=self.device)]
        super().sync(*args, **kwargs)
