"""The perturbation of Free adversarial training, which lives from minibatch to minibatch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_advdef.attacks import FGSM
from lightning_advdef.attacks.lp_ball import LpBall


class CarriedPerturbation:
    """Updated with the gradient by the images that the backward pass of training gives anyway.

    Source: Shafahi et al., 2019, https://arxiv.org/abs/1904.12843, algorithm 1. It belongs to the place in the batch
    and starts the next minibatch as it ended the last; a smaller batch uses and updates the first places.

    Args:
        attack: Gives norm, eps (the size of a step, too) and whether pixels stay in [0, 1].

    Attributes:
        values: Perturbation of each place, shape ``(B, C, H, W)``; None before the first batch.
    """

    def __init__(self, attack: FGSM) -> None:
        self.attack = attack
        self.values: Tensor | None = None
        self._leaf: Tensor | None = None

    def apply(self, images: Tensor) -> Tensor:
        """Perturbed images ``(N, C, H, W)`` in [0, 1], through which the gradient reaches the perturbation."""
        values = images[:0] if self.values is None else self.values.to(images.device)
        fresh = torch.zeros_like(images[len(values) :])
        self.values = torch.cat([values, fresh])
        self._leaf = self.values[: len(images)].clone().requires_grad_()
        return self.attack.clip(images + self._leaf)

    def update(self) -> None:
        """One step of length eps, projected onto the ball; after the backward pass."""
        assert self.values is not None
        assert self._leaf is not None
        assert self._leaf.grad is not None
        before = self._leaf.detach()
        ball = LpBall(self.attack.norm, before.new_full((len(before),), self.attack.eps))
        self.values[: len(before)] = ball.project(before + ball.radius * ball.steepest(self._leaf.grad))
        self._leaf = None
