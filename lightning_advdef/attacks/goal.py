"""What an attack wants of each image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Goal:
    """Any class but the true one, or a given class.

    Attributes:
        labels: True classes, int64, shape ``(N,)``.
        targets: Classes to reach, int64, shape ``(N,)``; None for any wrong class.
        any_wrong: The targets only steer the search: every wrong class counts, as in targeted APGD and FAB.
    """

    labels: Tensor
    targets: Tensor | None = None
    any_wrong: bool = False

    def __getitem__(self, rows: Tensor | slice) -> Goal:
        """The goals of some of the images."""
        return Goal(self.labels[rows], None if self.targets is None else self.targets[rows], self.any_wrong)

    def towards(self, targets: Tensor) -> Goal:
        """The same images, steered towards ``targets`` while every wrong class counts."""
        return Goal(self.labels, targets, any_wrong=True)

    def reached(self, logits: Tensor) -> Tensor:
        """Whether logits ``(N, K)`` are what the attack wants, bool, shape ``(N,)``."""
        predicted = logits.argmax(dim=1)
        if self.targets is None or self.any_wrong:
            return predicted != self.labels
        return predicted == self.targets
