"""Small convolutional networks, one for each image of a batch, that run and learn together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_advdef.rng import SampleRNG

Drop = Callable[[Tensor], Tensor]


def grouped(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution per image, with zeros around it, as one convolution with a group for each image.

    Args:
        images: Shape ``(R, N * I, H, W)``: R inputs for each of N networks.
        weight: Shape ``(N, O, I, 3, 3)``.
        bias: Shape ``(N, O)``.

    Returns:
        Shape ``(R, N * O, H, W)``.
    """
    return F.conv2d(images, weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(weight))


def unfolded(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by a batched product of matrices, with patches in columns."""
    (inputs, _, height, width), (networks, outputs, channels) = images.shape, weight.shape[:3]
    patches = F.unfold(images.view(-1, channels, height, width), 3, padding=1).view(inputs, networks, channels * 9, -1)
    found = (weight.flatten(2) @ patches).view(inputs, networks * outputs, height, width)
    return found + bias.view(-1, 1, 1)


def folded(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by a product of matrices before the pixels are moved, which is little work where outputs are few."""
    (inputs, _, height, width), (networks, outputs, channels) = images.shape, weight.shape[:3]
    # moving outputs instead of inputs turns the kernel round
    kernels = weight.flip(3, 4).permute(0, 1, 3, 4, 2).reshape(networks, outputs * 9, channels)
    moved = kernels @ images.view(inputs, networks, channels, -1)
    found = F.fold(moved.view(-1, outputs * 9, height * width), (height, width), 3, padding=1)
    return found.view(inputs, networks * outputs, height, width) + bias.view(-1, 1, 1)


def convolve(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in the way that suits the layer and the device; the result is no view, so ReLU may work in place."""
    outputs, channels = weight.shape[1:3]
    if 2 * outputs <= channels:
        return folded(images, weight, bias)
    # small groups leave the tensor cores of a GPU idle, while a CPU is slow at moving patches
    return (unfolded if images.is_cuda else grouped)(images, weight, bias)


@dataclass(frozen=True)
class Architecture(ABC):
    """A network from images to images of the same shape.

    Args:
        width: Channels of the inner layers.
        depth: Number of layers, or of levels.
    """

    width: int
    depth: int

    @property
    @abstractmethod
    def places(self) -> tuple[int, ...]:
        """Numbers of the places of dropout, whose activations have one shape."""

    @abstractmethod
    def layers(self, channels: int) -> list[tuple[int, int]]:
        """Input and output channels of each layer, for images of so many channels."""

    @abstractmethod
    def __call__(self, images: Tensor, parameters: list[Tensor], drop: Drop) -> Tensor:
        """Images ``(R, N * C, H, W)`` to images, before any sigmoid.

        Args:
            images: R inputs for each of N networks.
            parameters: Weight ``(N, O, I, 3, 3)`` and bias ``(N, O)`` of each layer in turn.
            drop: Dropout, called with activations ``(R, N * O, H, W)`` at each of the ``places`` in turn.
        """

    def initial(self, channels: int, rng: SampleRNG) -> list[Tensor]:
        """Xavier-uniform weights and PyTorch's default biases, the networks' own by ``rng``."""
        parameters = []
        for number, (before, after) in enumerate(self.layers(channels)):
            bound = math.sqrt(6 / (9 * before + 9 * after))
            parameters.append(rng.stream("weight", number).uniform(after, before, 3, 3, low=-bound, high=bound))
            bound = 1 / math.sqrt(9 * before)
            parameters.append(rng.stream("bias", number).uniform(after, low=-bound, high=bound))
        return parameters


@dataclass(frozen=True)
class FCN(Architecture):
    """The paper's fully convolutional network (Table 3): 3x3 convolutions with ReLU between them.

    Args:
        width: Channels of the inner layers.
        depth: Number of convolutions.
        dropped: Convolutions, counted from 1, whose ReLU dropout follows.
    """

    dropped: tuple[int, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """The convolutions before dropout, counted from 0."""
        return tuple(number - 1 for number in self.dropped)

    def layers(self, channels: int) -> list[tuple[int, int]]:
        """Input and output channels of each convolution."""
        sizes = [channels, *[self.width] * (self.depth - 1), channels]
        return list(pairwise(sizes))

    def __call__(self, images: Tensor, parameters: list[Tensor], drop: Drop) -> Tensor:
        """See :class:`Architecture`."""
        for number in range(self.depth):
            images = convolve(images, parameters[2 * number], parameters[2 * number + 1])
            if number < self.depth - 1:
                images = images.relu_()
            if number in self.places:
                images = drop(images)
        return images


@dataclass(frozen=True)
class UNet(Architecture):
    """A U-Net as of Deep Image Prior, in place of the FCN: the paper's ablation, which does not describe its own.

    ``depth`` levels of one convolution with ReLU, average pooling between them; on the way up nearest-neighbour
    upsampling, the level's features beside them, and one convolution; dropout at the lowest level.
    """

    @property
    def places(self) -> tuple[int, ...]:
        """The lowest level."""
        return (self.depth,)

    def layers(self, channels: int) -> list[tuple[int, int]]:
        """Input and output channels of the convolutions: down, up, and the last one."""
        width = self.width
        down = [(channels, width), *[(width, width)] * (self.depth - 1)]
        return [*down, *[(2 * width, width)] * (self.depth - 1), (width, channels)]

    def __call__(self, images: Tensor, parameters: list[Tensor], drop: Drop) -> Tensor:
        """See :class:`Architecture`."""
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        levels: list[Tensor] = []
        for number, (weight, bias) in enumerate(pairs[: self.depth]):
            levels.append(convolve(F.avg_pool2d(images, 2) if number else images, weight, bias).relu_())
            images = levels[-1]
        images = drop(images)
        for level, (weight, bias) in zip(reversed(levels[:-1]), pairs[self.depth : -1], strict=True):
            images = _beside(F.interpolate(images, level.shape[-2:]), level, len(weight))
            images = convolve(images, weight, bias).relu_()
        return convolve(images, *pairs[-1])


def _beside(one: Tensor, other: Tensor, networks: int) -> Tensor:
    """Channels of both, network by network; shape ``(R, N * 2 * O, H, W)``."""
    parts = [part.view(len(part), networks, -1, *part.shape[2:]) for part in (one, other)]
    return torch.cat(parts, dim=2).flatten(1, 2)
