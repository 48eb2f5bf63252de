"""Data descriptions and checks that the tests of networks share."""

import torch

from lightning_advdef.types import ImageSpec

MNIST = ImageSpec("mnist", 1, 28, 28, 10, (0.1307,), (0.3081,))
CIFAR = ImageSpec("cifar10", 3, 32, 32, 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
DIGITS = ImageSpec("digits", 1, 8, 8, 10, (0.3,), (0.4,))


def images_of(spec, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *spec.shape, generator=generator)


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def second_order_gradients(network, images):
    """Gradients, by the parameters, of the squared norm of the images' gradient of one logit difference."""
    images = images.clone().requires_grad_()
    logits = network(images)
    (gradient,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), images, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), list(network.parameters()), allow_unused=True)
