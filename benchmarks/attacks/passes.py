"""Counting passes: of peers at the network, which costs two additions a call; of ours in the surrogate's books."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_advdef.attacks import FullGradient
from lightning_advdef.attacks.base import within_budget
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm


class CountedNetwork(nn.Module):
    """The network that peers get: counts images that pass forward, and those whose gradient comes back.

    Ours cannot be counted here: a backward pass for all classes at once looks like one for one class.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the network."""
        self.forwards += len(images)
        logits: Tensor = self.network(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class FirstBreak(FullGradient):
    """Notes at which of its forward passes each image is first misclassified inside the budget.

    Args:
        network: Under attack.
        images: The clean batch, whose positions are the rows of the attack's ``SampleRNG``.
        labels: Of the batch.
        norm: Of the budget.
        eps: The budget.
    """

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> None:
        super().__init__(network)
        self.clean, self.labels, self.norm, self.eps = images, labels, norm, eps
        self.calls = torch.zeros_like(labels)
        self.first = torch.zeros_like(labels)

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits ``(1, N, K)``."""
        logits = super().logits(images, rng)
        with torch.no_grad():
            rows = rng.rows
            self.calls[rows] += 1
            inside = within_budget(lp_norm(images - self.clean[rows], self.norm), self.eps, self.norm)
            broken = inside & (logits[0].argmax(dim=1) != self.labels[rows]) & (self.first[rows] == 0)
            self.first[rows] = torch.where(broken, self.calls[rows], self.first[rows])
        return logits

    def needed(self, cost: Cost) -> Tensor:
        """Passes of each image, forward and backward, if it leaves as soon as it is broken; ``cost`` if it is not."""
        broken = self.first > 0
        forward = torch.where(broken, self.first.double(), cost.forward)
        return forward + torch.where(broken, self.first.double().clamp_max(cost.backward), cost.backward)
