"""The regulariser of Deep Defense, and the view of the network that it differentiates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_advdef.types import Norm

# the authors' later code bounds the exponential too; exp(20) still is far from overflow
LARGEST_EXPONENT = 20.0
# for an all-black image, whose norm is zero
SMALLEST_NORM = 1e-12
# oneDNN is slow at the gradient by the input of a convolution with so few channels
FEW_CHANNELS = 4
_ORDER: dict[Norm, float] = {"linf": torch.inf, "l2": 2, "l1": 1}


def deep_defense_regularizer(
    perturbation: Tensor, images: Tensor, correct: Tensor, c: float = 25.0, d: float = 5.0, norm: Norm = "l2"
) -> Tensor:
    """Rewards correct images for a large relative perturbation, wrong ones for a small one.

    Source: Deep Defense, Eq. 6 with ``R = exp``, divided by the batch size as in the authors' code.

    Args:
        perturbation: What ``replay`` gave, pixel units, shape ``(N, C, H, W)``.
        images: The unperturbed images, same shape.
        correct: Whether each image is classified right (the set T), bool, shape ``(N,)``.
        c: Sharpness for correct images.
        d: Sharpness for wrong images (the set F); ``d * r`` is cut at 20, where its gradient ends.
        norm: Norm p of both the perturbation and the image.

    Returns:
        ``(sum_T exp(-c r) + sum_F exp(d r)) / N`` with ``r = ||perturbation|| / ||image||``, a scalar. The weight (λ)
        is left to the caller.
    """
    size = relative_size(perturbation, images, norm)
    exponent = torch.where(correct, -c * size, (d * size).clamp(max=LARGEST_EXPONENT))
    return exponent.exp().mean()


def relative_size(perturbation: Tensor, images: Tensor, norm: Norm = "l2") -> Tensor:
    """Norm of each perturbation as a share of the norm of its image (Eq. 7 is its mean), shape ``(N,)``."""
    sizes = (torch.linalg.vector_norm(tensor.flatten(1), _ORDER[norm], dim=1) for tensor in (perturbation, images))
    size, image_size = sizes
    relative: Tensor = size / image_size.clamp_min(SMALLEST_NORM)
    return relative


def regularized_view(network: nn.Module, layer: str | None = None) -> Callable[[Tensor], Tensor]:
    """The network as the regulariser sees it: some of its parameters are constants.

    Parameters of batch norm are frozen, as in the authors' code; with ``layer``, so is everything outside that layer
    (Deep Defense, Fig. 4). The parameters themselves stay as they are, so a cross-entropy of ``network`` in the same
    loss trains all of them.

    Args:
        network: The network; batch norm should be in eval mode, see ``batch_norm_eval``.
        layer: Name of the only module whose parameters the regulariser trains, as in ``named_modules``.

    Returns:
        Images to logits, for ``plan_paths`` and ``replay``. It holds the parameters' present values: make a new one
        after each optimizer step.

    Raises:
        ValueError: If no module of that name has parameters to train.
    """
    trainable = _trainable_names(network, layer)
    parameters = {
        name: parameter if name in trainable else parameter.detach() for name, parameter in network.named_parameters()
    }

    def view(images: Tensor) -> Tensor:
        with _unfolded_convolutions(network):
            logits: Tensor = functional_call(network, parameters, (images,))
        return logits

    return view


def _trainable_names(network: nn.Module, layer: str | None) -> set[str]:
    """Names of the parameters that the regulariser trains."""
    owners: dict[str, set[str]] = {}
    for owner, module in network.named_modules():
        if not isinstance(module, _BatchNorm):
            for name, _ in module.named_parameters(owner, recurse=False):
                owners.setdefault(owner, set()).add(name)
    if layer is None:
        return set().union(*owners.values())
    chosen = set().union(*(names for owner, names in owners.items() if f"{owner}.".startswith(f"{layer}.")))
    if not chosen:
        raise ValueError(f"layer must be one of {', '.join(owners)} or a module around them, got {layer!r}")
    return chosen


@contextmanager
def _unfolded_convolutions(network: nn.Module) -> Iterator[None]:
    """Computes convolutions of few input channels as matrix products within the ``with`` block.

    The same function; on a CPU its gradient by the image, which Deep Defense takes once per class, costs a quarter
    for one channel and half for three.
    """
    layers = [module for module in network.modules() if type(module) is nn.Conv2d and _is_unfoldable(module)]
    for layer in layers:
        layer.forward = partial(_unfolded_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_unfoldable(layer: nn.Conv2d) -> bool:
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    few = layer.in_channels <= FEW_CHANNELS and layer.weight.device.type == "cpu"
    return plain and few and "forward" not in vars(layer)


def _unfolded_forward(layer: nn.Conv2d, images: Tensor) -> Tensor:
    kernel, padding, stride, dilation = layer.kernel_size, layer.padding, layer.stride, layer.dilation
    assert not isinstance(padding, str)
    patches = F.unfold(images, kernel, dilation, padding, stride)
    output = layer.weight.flatten(1) @ patches
    if layer.bias is not None:
        output = output + layer.bias[:, None]
    size = [
        (images.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    return output.view(len(images), -1, *size)


@contextmanager
def batch_norm_eval(network: nn.Module) -> Iterator[None]:
    """Puts batch norm into eval mode within the ``with`` block, so that images stay independent of each other.

    Args:
        network: Its other layers, such as dropout, keep their mode; running statistics are not touched.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
