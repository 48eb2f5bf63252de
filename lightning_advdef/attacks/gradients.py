"""The only place where attacks differentiate; passes are booked on the surrogate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_advdef.attacks.losses import Loss
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG


class LossGradient(NamedTuple):
    """Loss ``(N,)``, its gradient by the images ``(N, C, H, W)`` and the mean logits ``(N, K)``, all detached."""

    loss: Tensor
    gradient: Tensor
    logits: Tensor


def mean_loss(
    surrogate: Surrogate, images: Tensor, labels: Tensor, loss: Loss, rng: SampleRNG
) -> tuple[Tensor, Tensor]:
    """Loss of each image, averaged over the surrogate's draws, and the logits averaged likewise.

    The surrogate's auxiliary loss (adaptive attacks) is added.
    """
    logits = surrogate(images, rng).float()
    losses = torch.stack([loss(draw, labels) for draw in logits]).mean(dim=0)
    auxiliary = surrogate.auxiliary(images, labels, rng)
    return (losses if auxiliary is None else losses + auxiliary), logits.mean(dim=0)


def _gradient(outputs: Tensor, leaf: Tensor, cotangents: Tensor, batched: bool = False) -> Tensor:
    """Gradient by the images; zero where the defense cuts it, which the books then show."""
    found = None
    if outputs.requires_grad:
        (found,) = torch.autograd.grad(outputs, leaf, cotangents, is_grads_batched=batched, allow_unused=True)
    return leaf.new_zeros((*cotangents.shape[: int(batched)], *leaf.shape)) if found is None else found


def loss_and_gradient(surrogate: Surrogate, images: Tensor, labels: Tensor, loss: Loss, rng: SampleRNG) -> LossGradient:
    """Loss of each image and its gradient by that image; images do not influence each other.

    Args:
        surrogate: The classifier to differentiate.
        images: Current iterates, shape ``(N, C, H, W)``.
        labels: True classes, shape ``(N,)``.
        loss: What to maximise.
        rng: The rows' random numbers for this step.
    """
    leaf = images.detach().requires_grad_()
    losses, logits = mean_loss(surrogate, leaf, labels, loss, rng)
    gradient = _gradient(losses, leaf, torch.ones_like(losses))
    surrogate.watch(gradient)
    surrogate.count_backward(rng, surrogate.draws, gradient)
    return LossGradient(losses.detach(), gradient, logits.detach())


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
    leaf = images.detach().requires_grad_()
    logits = surrogate(leaf, rng).float().mean(dim=0)
    count = logits.shape[1]
    if classes is None:
        classes = torch.arange(count, device=logits.device).expand(len(images), count)
    cotangents = torch.nn.functional.one_hot(classes.t(), count).to(logits.dtype)
    jacobian = _gradient(logits, leaf, cotangents, batched=True).transpose(0, 1).contiguous()
    surrogate.watch(jacobian)
    surrogate.count_backward(rng, surrogate.draws * classes.shape[1], jacobian)
    return logits.detach(), jacobian
