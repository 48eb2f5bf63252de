"""The oracle: unrolled DeepFool as the paper tells it, all class gradients of all images with a graph in every step."""

from __future__ import annotations

import torch
from torch import Tensor

GAP_GUARD = 1e-5


def naive_perturbation(network, images: Tensor, labels: Tensor, steps: int, overshoot: float = 0.02) -> Tensor:
    """L2 perturbation ``(1 + overshoot) * Delta``, differentiable through everything; slow and plain."""
    rows = torch.arange(len(images))
    with torch.no_grad():
        predicted = network(images).argmax(1)
    correct = predicted == labels
    delta = torch.zeros_like(images).requires_grad_()
    fooled = torch.zeros_like(correct)
    for _ in range(steps):
        points = images + delta
        logits = network(points)
        classes = logits.shape[1]
        cotangents = torch.eye(classes, dtype=images.dtype)[:, None].expand(-1, len(images), -1)
        (jacobian,) = torch.autograd.grad(logits, points, cotangents, is_grads_batched=True, create_graph=True)
        jacobian = jacobian.transpose(0, 1).flatten(2)
        # wrong images move to their label, away from the class they are in now
        rivals = logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)
        reference = torch.where(correct, predicted, rivals)
        gaps = logits - logits[rows, reference][:, None]
        gradients = jacobian - jacobian[rows, reference][:, None]
        with torch.no_grad():
            distances = (gaps.abs() + GAP_GUARD) / gradients.norm(dim=2)
            distances[rows, reference] = torch.inf
            nearest = torch.where(correct, distances.argmin(1), labels)
        gap, gradient = gaps[rows, nearest], gradients[rows, nearest]
        move = ((gap.abs() + GAP_GUARD) / gradient.square().sum(1))[:, None] * gradient
        delta = delta + torch.where(fooled[:, None], 0, move).view_as(images)
        with torch.no_grad():
            now = network(images + (1 + overshoot) * delta).argmax(1)
        fooled = fooled | torch.where(correct, now != predicted, now == labels)
        if fooled.all():
            break
    return (1 + overshoot) * delta
