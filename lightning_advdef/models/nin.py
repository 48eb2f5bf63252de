"""Network in Network, the larger CIFAR-10 network of Deep Defense."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lightning_advdef.models.base import Classifier, require_image_size
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec


def _block(channels: int, widths: tuple[int, ...], kernel_size: int) -> list[tuple[str, nn.Module]]:
    """One wide convolution and then 1x1 convolutions, ReLU after each; the names count from 1."""
    layers: list[tuple[str, nn.Module]] = []
    for number, width in enumerate(widths, start=1):
        size = kernel_size if number == 1 else 1
        layers.append((f"conv{number}", nn.Conv2d(channels, width, size, padding=size // 2)))
        layers.append((f"relu{number}", nn.ReLU()))
        channels = width
    return layers


class NIN(Classifier):
    """Three blocks of one wide and two 1x1 convolutions, with dropout between; the last 1x1 convolution is the head.

    Source: Lin et al., 2014, https://arxiv.org/abs/1312.4400, with the layers of Deep Defense's code (2x2 pools).
    Training through an unrolled attack needs ``shared_dropout_masks`` around the step.

    Args:
        spec: Shape, classes and pixel statistics of the data; images of at least 4x4.
        dropout: Share of activations dropped after the first and second block.
        normalization: ``[mean, std]`` in place of the statistics of the data set.

    Raises:
        ValueError: If the images are too small, or ``dropout`` is no share.
    """

    def __init__(self, spec: ImageSpec, dropout: float = 0.5, normalization: list[list[float]] | None = None) -> None:
        super().__init__(spec, normalization)
        require_image_size("NIN", spec, minimum=4)
        first = [*_block(spec.channels, (192, 160, 96), 5), ("pool", nn.MaxPool2d(2)), ("drop", nn.Dropout(dropout))]
        second = [*_block(96, (192, 192, 192), 5), ("pool", nn.AvgPool2d(2)), ("drop", nn.Dropout(dropout))]
        third = _block(192, (192, 192), 3)
        blocks = {f"block{n}": nn.Sequential(OrderedDict(b)) for n, b in enumerate([first, second, third], start=1)}
        self.features = nn.Sequential(OrderedDict(blocks))
        self.head = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(192, spec.classes, kernel_size=1), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()
            )
        )
        kaiming_init(self)
