"""What an attack maximises, one value per image, computed in float32 whatever the network's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["cross_entropy", "margin"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image; logits ``(N, K)``, labels ``(N,)``, result ``(N,)``."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus true logit (Carlini and Wagner, 2017, f6 with kappa 0); positive exactly when wrong."""
    true = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    wrong = logits.scatter(1, labels.unsqueeze(1), float("-inf")).amax(dim=1)
    return wrong - true


LOSSES: dict[LossName, Loss] = {"cross_entropy": cross_entropy, "margin": margin}
