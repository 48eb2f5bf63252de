"""What an attack maximises, one value per image, computed in float32 whatever the network's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["cross_entropy", "margin"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image; logits ``(N, K)``, labels ``(N,)``, result ``(N,)``.

    Written as softplus of log-sum-exp of the wrong logits minus the true one: the usual form loses the true class's
    share of the gradient once its probability rounds to 1, and points an attack on a very sure network astray.
    """
    true, wrong = _split(logits, labels)
    return F.softplus(wrong.logsumexp(dim=1) - true)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus true logit (Carlini and Wagner, 2017, f6 with kappa 0); positive exactly when wrong."""
    true, wrong = _split(logits, labels)
    return wrong.amax(dim=1) - true


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The true logit ``(N,)``, and all logits ``(N, K)`` with minus infinity in its place."""
    index = labels.unsqueeze(1)
    return logits.gather(1, index).squeeze(1), logits.scatter(1, index, float("-inf"))


LOSSES: dict[LossName, Loss] = {"cross_entropy": cross_entropy, "margin": margin}
