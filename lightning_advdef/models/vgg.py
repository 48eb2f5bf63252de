"""VGG with batch normalisation for small images, from torchvision's layer table."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from lightning_advdef.models.base import Classifier, require_image_size
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec

_TABLES = {11: "A", 13: "B", 16: "D", 19: "E"}


class VGG(Classifier):
    """VGG-16 with batch normalisation, a 512-d embedding and one linear head, as usual for CIFAR.

    Source: Simonyan & Zisserman, 2015, https://arxiv.org/abs/1409.1556; the two hidden layers of 4096 units are for
    ImageNet and left out. For 224x224 images use ``TorchvisionClassifier``.

    Args:
        spec: Shape, classes and pixel statistics of the data; images of at least 32x32.
        depth: Number of layers with weights as the paper counts them: 11, 13, 16 or 19.
        normalization: ``[mean, std]`` in place of the statistics of the data set.

    Raises:
        ValueError: If the images are too small, or ``depth`` is none of the four.
    """

    def __init__(
        self,
        spec: ImageSpec,
        depth: Literal[11, 13, 16, 19] = 16,
        normalization: list[list[float]] | None = None,
    ) -> None:
        super().__init__(spec, normalization)
        require_image_size("VGG", spec, minimum=32)
        if depth not in _TABLES:
            raise ValueError(f"VGG needs depth 11, 13, 16 or 19, got depth={depth}")
        convolutions = make_layers(cfgs[_TABLES[depth]], batch_norm=True)
        if spec.channels != 3:
            convolutions[0] = nn.Conv2d(spec.channels, 64, kernel_size=3, padding=1)
        self.features = nn.Sequential(
            OrderedDict(convolutions=convolutions, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        )
        self.head = nn.Linear(512, spec.classes)
        kaiming_init(self.features, mode="fan_out")
