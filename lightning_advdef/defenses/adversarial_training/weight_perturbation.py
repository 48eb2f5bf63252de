"""Adversarial weight perturbation (AWP): the loss at the worst weights nearby."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_advdef.models.batch_norm import batch_norm_layers, frozen_statistics

Network = Callable[[Tensor], Tensor]
_TINY = 1e-20  # the authors' constant below the fraction


def perturbed_view(
    network: nn.Module, loss: Callable[[Network], Tensor], gamma: float, average: Callable[[Tensor], Tensor]
) -> Network:
    """The network with each weight ``w`` moved by ``γ ||w|| d / ||d||`` along the gradient ``d`` of the loss.

    Source: Wu et al., 2020, https://arxiv.org/abs/2004.05884, Eq. 10 and algorithm 1. Only weights of more than one
    dimension move, as in the authors' code: neither biases nor batch norm.

    Args:
        network: Its parameters are never written to: the moved weights are ``w`` plus a constant, so the gradient of a
            loss of the view arrives at ``w`` and there is nothing to restore. They are no leaves either, so autocast
            keeps no copies of them.
        loss: Of a network; what the perturbation maximises.
        gamma: Size of the perturbation relative to the weight's norm (γ).
        average: Mean of a tensor over all processes, which makes their perturbation that of the joined batch.

    Returns:
        Images to logits. Running statistics of batch norm follow its passes, not the pass that finds the gradient.

    Note:
        The authors also step the optimizer at the moved weights, so their weight decay acts on those.
    """
    weights = {name: w for name, w in network.named_parameters() if w.requires_grad and w.dim() > 1}
    with frozen_statistics(batch_norm_layers(network)):
        value, leaves = loss(network), list(weights.values())
        gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    directions = _averaged(gradients, average)
    moved = {
        name: w + gamma * w.detach().norm() / (d.norm() + _TINY) * d
        for (name, w), d in zip(weights.items(), directions, strict=True)
    }
    return partial(_forward, network, moved)


def _forward(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    logits: Tensor = functional_call(network, weights, (images,))
    return logits


def _averaged(gradients: Sequence[Tensor], average: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """All gradients averaged in one message."""
    flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    return [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
