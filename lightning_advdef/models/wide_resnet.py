"""Wide residual networks for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lightning_advdef.models.base import Classifier, require_image_size
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec


class _Block(nn.Module):
    """Pre-activation block; a shortcut that changes shape leaves after the first ReLU, as in the authors' code."""

    def __init__(self, before: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or before != channels:
            self.shortcut = nn.Conv2d(before, channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(images))
        residual: Tensor = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(activated)))))
        return residual + (images if self.shortcut is None else self.shortcut(activated))


class WideResNet(Classifier):
    """WRN-depth-width with pre-activation blocks; ``features.group0`` to ``features.group2`` give raw sums of a block.

    Source: Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1605.07146, Table 1.

    Args:
        spec: Shape, classes and pixel statistics of the data; images of at least 4x4.
        depth: Number of convolutions with those of the shortcuts, 6n + 4; each of the three groups has n blocks.
        width: Factor on the 16, 32 and 64 channels of the groups.
        dropout: Chance of a value between the convolutions of a block to be zeroed in training.
        normalization: ``[mean, std]`` in place of the statistics of the data set.

    Raises:
        ValueError: If ``depth`` is not 6n + 4, ``width`` is below 1, ``dropout`` is no chance, or the images are too
            small.
    """

    def __init__(
        self,
        spec: ImageSpec,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
        normalization: list[list[float]] | None = None,
    ) -> None:
        super().__init__(spec, normalization)
        require_image_size("WideResNet", spec, minimum=4)
        if depth < 10 or depth % 6 != 4 or width < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "WideResNet needs depth 10, 16, 22, 28, ..., width >= 1 and dropout in [0, 1), "
                f"got depth={depth}, width={width}, dropout={dropout}"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(spec.channels, 16, kernel_size=3, padding=1, bias=False)
        )
        before = 16
        for group, base in enumerate((16, 32, 64)):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range((depth - 4) // 6):
                blocks[f"block{number}"] = _Block(before, base * width, 2 if group and not number else 1, dropout)
                before = base * width
            layers[f"group{group}"] = nn.Sequential(blocks)
        layers |= {"bn": nn.BatchNorm2d(before), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1)}
        layers["flatten"] = nn.Flatten()
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(before, spec.classes)
        kaiming_init(self.features, mode="fan_out")
