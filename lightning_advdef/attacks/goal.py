"""What an attack wants of each image."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Goal:
    """Any class but the true one, or a given class.

    Attributes:
        labels: True classes, int64, shape ``(N,)``.
        targets: Classes to reach, int64, shape ``(N,)``; None for any wrong class.
        any_wrong: The targets only steer the search: every wrong class counts, as in targeted APGD and FAB.
        reference: Logits of the unperturbed images, shape ``(N, K)``, for a loss that compares with them.
    """

    labels: Tensor
    targets: Tensor | None = None
    any_wrong: bool = False
    reference: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> Goal:
        """The goals of some of the images."""
        targets, reference = (None if each is None else each[rows] for each in (self.targets, self.reference))
        return Goal(self.labels[rows], targets, self.any_wrong, reference)

    def towards(self, targets: Tensor) -> Goal:
        """The same images, steered towards ``targets`` while every wrong class counts."""
        return replace(self, targets=targets, any_wrong=True)

    def reached(self, logits: Tensor) -> Tensor:
        """Whether logits ``(N, K)`` are what the attack wants, bool, shape ``(N,)``."""
        predicted = logits.argmax(dim=1)
        if self.targets is None or self.any_wrong:
            return predicted != self.labels
        return predicted == self.targets
