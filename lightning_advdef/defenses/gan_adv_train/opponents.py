"""Two players on one forward pass: what the classifier minimises, the generator maximises."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_advdef.models import PerturbationGenerator


class Opposed(NamedTuple):
    """The same adversarial images twice.

    Attributes:
        for_classifier: What is computed from them trains the classifier, through the gradient that the generator saw.
        for_generator: What is computed from them trains the generator.
    """

    for_classifier: Tensor
    for_generator: Tensor


class _Generate(torch.autograd.Function):
    """The generator with two outputs, so that its input and its parameters get gradients of different losses.

    One backward pass then serves both players, as DistributedDataParallel asks for: every parameter's gradient arrives
    once. Passing both losses back through the generator costs a quarter of its forward and backward pass more than
    one, and nothing where its input needs no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, generator: nn.Module, images: Tensor, labels: Tensor, gradient: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen = gradient.detach().requires_grad_(ctx.needs_input_grad[3])
        with torch.enable_grad():
            adversarial = generator(images, labels, seen)
        ctx.graph = adversarial, seen, parameters
        return adversarial.detach(), adversarial.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_classifier: Tensor, of_generator: Tensor) -> tuple[Tensor | None, ...]:
        adversarial, seen, parameters = ctx.graph
        ctx.graph = None
        by_input = None
        if seen.requires_grad:
            (by_input,) = torch.autograd.grad(adversarial, seen, of_classifier, retain_graph=True)
        by_parameters = torch.autograd.grad(adversarial, parameters, of_generator)
        return None, None, None, by_input, *by_parameters


class _Meet(torch.autograd.Function):
    """Images of which the classifier's copy gets the gradient, and the generator's its negative, times a factor."""

    @staticmethod
    def forward(ctx: Any, for_classifier: Tensor, for_generator: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return for_classifier.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, -ctx.factor * gradient, None


def generate(generator: PerturbationGenerator, images: Tensor, labels: Tensor, gradient: Tensor) -> Opposed:
    """Adversarial images of the generator, for either player.

    Args:
        generator: Its parameters get what is computed from ``for_generator``.
        images: Clean images in [0, 1], shape ``(N, C, H, W)``.
        labels: True classes, shape ``(N,)``.
        gradient: Gradient of the true class's probability, shape ``(N, C, H, W)``; what is computed from
            ``for_classifier`` passes through it if it carries a graph.
    """
    return Opposed(*_Generate.apply(generator, images, labels, gradient, *generator.parameters()))


def meet(opposed: Opposed, weight: float) -> Tensor:
    """The images for a loss that the classifier minimises with ``weight`` and the generator maximises with 1."""
    images: Tensor = _Meet.apply(*opposed, 1 / weight)
    return images
