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


def _refuse_detached(surrogate: Surrogate, outputs: Tensor) -> None:
    if not outputs.requires_grad:
        raise ValueError(
            f"{type(surrogate).__name__} gives logits without a gradient by the images: a step of the defense cuts it "
            "(no_grad, detach, rounding); attack through a surrogate that goes around that step, such as Undefended"
        )


def loss_and_gradient(surrogate: Surrogate, images: Tensor, labels: Tensor, loss: Loss, rng: SampleRNG) -> LossGradient:
    """Loss of each image and its gradient by that image; images do not influence each other.

    Args:
        surrogate: The classifier to differentiate.
        images: Current iterates, shape ``(N, C, H, W)``.
        labels: True classes, shape ``(N,)``.
        loss: What to maximise.
        rng: The rows' random numbers for this step.

    Raises:
        ValueError: If the surrogate cuts the gradient.
    """
    leaf = images.detach().requires_grad_()
    losses, logits = mean_loss(surrogate, leaf, labels, loss, rng)
    _refuse_detached(surrogate, losses)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    surrogate.watch(gradient)
    surrogate.count_backward(rng, surrogate.draws)
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

    Raises:
        ValueError: If the surrogate cuts the gradient.
    """
    leaf = images.detach().requires_grad_()
    logits = surrogate(leaf, rng).float().mean(dim=0)
    count = logits.shape[1]
    if classes is None:
        classes = torch.arange(count, device=logits.device).expand(len(images), count)
    cotangents = torch.nn.functional.one_hot(classes.t(), count).to(logits.dtype)
    _refuse_detached(surrogate, logits)
    (jacobian,) = torch.autograd.grad(logits, leaf, cotangents, is_grads_batched=True)
    surrogate.watch(jacobian)
    surrogate.count_backward(rng, surrogate.draws * classes.shape[1])
    return logits.detach(), jacobian.transpose(0, 1).contiguous()
