"""Embeddings of all training images, and pairs of them by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_advdef.data.sources import ImageDataset
from lightning_advdef.messages import with_bar
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

Pairing = Literal["same_class", "correct_wrong"]

_AT_ONCE = 256


class EmbeddingPools:
    """Embeddings sorted by class, the correctly classified ones first.

    Args:
        embeddings: Shape ``(M, d)``.
        labels: True classes, int64, shape ``(M,)``.
        correct: Which of them the head classifies correctly, bool, shape ``(M,)``.
        classes: Number of classes.
    """

    def __init__(self, embeddings: Tensor, labels: Tensor, correct: Tensor, classes: int) -> None:
        group = 2 * labels + ~correct
        self.embeddings = embeddings[group.argsort(stable=True)]
        self.counts = torch.bincount(group, minlength=2 * classes).view(classes, 2)
        sizes = self.counts.sum(dim=1)
        self.starts = sizes.cumsum(dim=0) - sizes

    def mixtures(self, labels: Tensor, rng: SampleRNG, pairing: Pairing) -> Tensor:
        """A convex combination of two embeddings of each class asked for (Definition 1, Eq. 6).

        Args:
            labels: Classes, int64, shape ``(N,)``.
            rng: One of ``N`` rows; draws the pair and alpha, uniform in [0, 1).
            pairing: See :meth:`pairs`.

        Returns:
            Shape ``(N, d)``.
        """
        first, second = self.pairs(labels, rng, pairing)
        alpha = rng.stream("alpha").uniform(1)
        return torch.lerp(self.embeddings[second], self.embeddings[first], alpha)

    def pairs(self, labels: Tensor, rng: SampleRNG, pairing: Pairing) -> tuple[Tensor, Tensor]:
        """Rows of ``embeddings``, two of each class asked for, int64, shape ``(N,)`` each.

        ``same_class`` draws both from all of the class, as the authors' code does; ``correct_wrong`` draws the first
        from the correctly classified and the second from the others, as the paper writes, unless a class has none of
        either.
        """
        start, (right, wrong) = self.starts[labels], self.counts[labels].unbind(dim=1)
        split = torch.full_like(right, pairing == "correct_wrong", dtype=torch.bool) & (right > 0) & (wrong > 0)
        every = right + wrong
        first = _row(start, torch.where(split, right, every), rng.stream("first"))
        second = _row(start + right * split, torch.where(split, wrong, every), rng.stream("second"))
        return first, second


def _row(start: Tensor, count: Tensor, rng: SampleRNG) -> Tensor:
    """A row of each of some ranges ``(N,)``."""
    offset = (rng.uniform(1).squeeze(1).double() * count).long()
    return start + offset.minimum(count - 1)


class Embedded(NamedTuple):
    """What a network makes of images.

    Attributes:
        embeddings: Shape ``(M, d)``.
        labels: True classes, int64, shape ``(M,)``.
        correct: Which of them the head classifies correctly, bool, shape ``(M,)``.
        classes: Number of classes.
    """

    embeddings: Tensor
    labels: Tensor
    correct: Tensor
    classes: int


def embedded(
    dataset: ImageDataset,
    versions: Callable[[Batch], list[Tensor]],
    embed: Callable[[Tensor], tuple[Tensor, Tensor]],
    device: torch.device,
    progress: bool = False,
) -> Embedded:
    """Embeddings of some versions of all images.

    Args:
        dataset: Clean images.
        versions: From a batch to batches of images ``(N, C, H, W)``.
        embed: From images to embeddings ``(N, d)`` and logits ``(N, K)``.
        device: Where all is computed and the embeddings stay.
        progress: Whether the terminal shows a bar.
    """
    parts, classes = [], 0
    lots = torch.split(torch.arange(len(dataset)), _AT_ONCE)
    for positions in with_bar(lots, f"embedding {len(dataset)} images", progress):
        batch = Batch(*(tensor.to(device) for tensor in dataset.__getitems__(positions.tolist())))
        for images in versions(batch):
            features, logits = embed(images)
            classes = logits.shape[1]
            parts.append((features, batch.labels, logits.argmax(dim=1) == batch.labels))
    embeddings, labels, correct = (torch.cat(column) for column in zip(*parts, strict=True))
    return Embedded(embeddings, labels, correct, classes)
