"""Residual networks for small images, from torchvision's blocks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lightning_advdef.models.base import Classifier
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec

_BLOCKS = {10: (BasicBlock, (1, 1, 1, 1)), 18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}


def _stage(block: type[BasicBlock | Bottleneck], channels: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    """``depth`` residual blocks, of which the first changes the resolution and the number of channels."""
    expanded = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != expanded:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, expanded, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(expanded)
        )
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(expanded, planes) for _ in range(depth - 1)))


class ResNet(Classifier):
    """ResNet-10, 18 or 50 with a 3x3 first layer and no first pooling, as usual for CIFAR.

    Source: He et al., 2016, https://arxiv.org/abs/1512.03385; for 224x224 images use ``TorchvisionClassifier``.

    Args:
        spec: Shape, classes and pixel statistics of the data.
        depth: 10 or 18 (512 features at the default width) or 50 (2048).
        width: Channels of the first stage; the others have 2, 4 and 8 times as many.
        normalization: ``[mean, std]`` in place of the statistics of the data set.

    Raises:
        ValueError: If ``depth`` or ``width`` is out of range.
    """

    def __init__(
        self,
        spec: ImageSpec,
        depth: Literal[10, 18, 50] = 18,
        width: int = 64,
        normalization: list[list[float]] | None = None,
    ) -> None:
        super().__init__(spec, normalization)
        if depth not in _BLOCKS or width < 1:
            raise ValueError(f"ResNet needs depth 10, 18 or 50 and width >= 1, got depth={depth}, width={width}")
        block, depths = _BLOCKS[depth]
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(spec.channels, width, kernel_size=3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
        )
        channels = width
        for number, blocks in enumerate(depths):
            planes = width * 2**number
            layers[f"layer{number + 1}"] = _stage(block, channels, planes, blocks, stride=1 if number == 0 else 2)
            channels = planes * block.expansion
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(channels, spec.classes)
        kaiming_init(self.features, mode="fan_out")
