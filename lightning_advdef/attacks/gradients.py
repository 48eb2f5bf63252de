"""The only place where attacks differentiate; passes are booked on the surrogate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import Loss
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG


class LossGradient(NamedTuple):
    """Loss ``(N,)``, its gradient by the images ``(N, C, H, W)`` and the mean logits ``(N, K)``, all detached."""

    loss: Tensor
    gradient: Tensor
    logits: Tensor


def mean_loss(surrogate: Surrogate, images: Tensor, goal: Goal, loss: Loss, rng: SampleRNG) -> tuple[Tensor, Tensor]:
    """Loss of each image, averaged over the surrogate's draws, and the logits averaged likewise.

    The surrogate's auxiliary loss (adaptive attacks) is added.
    """
    logits = surrogate(images, rng)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    draws, count = logits.shape[:2]
    stacked = goal if draws == 1 else goal[torch.arange(count, device=logits.device).repeat(draws)]
    losses = loss(logits.flatten(0, 1), stacked).view(draws, count).mean(dim=0)
    auxiliary = surrogate.auxiliary(images, goal.labels, rng)
    return (losses if auxiliary is None else losses + auxiliary), logits.mean(dim=0)


def _gradient(outputs: Tensor, leaf: Tensor, cotangents: Tensor, batched: bool = False) -> Tensor:
    """Gradient by the images; zero where the defense cuts it, which the books then show."""
    found = None
    if outputs.requires_grad:
        (found,) = torch.autograd.grad(outputs, leaf, cotangents, is_grads_batched=batched, allow_unused=True)
    return leaf.new_zeros((*cotangents.shape[: int(batched)], *leaf.shape)) if found is None else found


def loss_and_gradient(surrogate: Surrogate, images: Tensor, goal: Goal, loss: Loss, rng: SampleRNG) -> LossGradient:
    """Loss of each image and its gradient by that image; images do not influence each other.

    Args:
        surrogate: The classifier to differentiate.
        images: Current iterates, shape ``(N, C, H, W)``.
        goal: What is wanted of the images.
        loss: What to maximise.
        rng: The rows' random numbers for this step.
    """
    parts = []
    for rows in surrogate.chunks(len(images), surrogate.draws):
        leaf = images[rows].detach().requires_grad_()
        losses, logits = mean_loss(surrogate, leaf, goal[rows], loss, rng[rows])
        gradient = _gradient(losses, leaf, torch.ones_like(losses))
        parts.append(LossGradient(losses.detach(), gradient, logits.detach()))
    found = parts[0] if len(parts) == 1 else LossGradient(*(torch.cat(values) for values in zip(*parts, strict=True)))
    surrogate.watch(found.gradient)
    surrogate.count_backward(rng, surrogate.draws, found.gradient)
    return found


def logits_and_jacobian(
    surrogate: Surrogate, images: Tensor, classes: Tensor | None, rng: SampleRNG
) -> tuple[Tensor, Tensor]:
    """Mean logits ``(N, K)`` and the gradients of chosen logits by the image.

    Args:
        surrogate: The classifier to differentiate.
        images: Shape ``(N, C, H, W)``.
        classes: Logits to differentiate, per image, shape ``(N, M)``; ``None`` for all.
        rng: The rows' random numbers for this step.

    Returns:
        Logits ``(N, K)`` and the Jacobian ``(N, M, C, H, W)``, detached.
    """
    parts = []
    for rows in surrogate.chunks(len(images), surrogate.draws * (1 if classes is None else classes.shape[1])):
        parts.append(_jacobian(surrogate, images[rows], None if classes is None else classes[rows], rng[rows]))
    logits, jacobian = parts[0] if len(parts) == 1 else (torch.cat(values) for values in zip(*parts, strict=True))
    surrogate.watch(jacobian)
    surrogate.count_backward(rng, surrogate.draws * jacobian.shape[1], jacobian)
    return logits, jacobian


def _jacobian(surrogate: Surrogate, images: Tensor, classes: Tensor | None, rng: SampleRNG) -> tuple[Tensor, Tensor]:
    leaf = images.detach().requires_grad_()
    logits = surrogate(leaf, rng).float().mean(dim=0)
    count = logits.shape[1]
    if classes is None:
        classes = torch.arange(count, device=logits.device).expand(len(images), count)
    cotangents = torch.nn.functional.one_hot(classes.t(), count).to(logits.dtype)
    jacobian = _gradient(logits, leaf, cotangents, batched=True).transpose(0, 1).contiguous()
    return logits.detach(), jacobian
