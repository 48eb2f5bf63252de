"""ConvPool-CNN, the network of the perturbation-generator paper."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lightning_advdef.models.base import Classifier, require_image_size
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec

SLOPE = 0.2  # of every leaky ReLU


class ConvPoolCNN(Classifier):
    """Seven 3x3 convolutions with leaky ReLU, three average pools between them, and the mean of the last map as logits.

    Source: "Adversarial training with perturbation generator networks", Table 1, which is the all-convolutional network
    of CleverHans. The last convolution, too, is followed by leaky ReLU, as there. CleverHans starts its weights with
    standard deviation 1 / sqrt(fan in) under the name of He et al.; here it is the sqrt(2 / fan in) of He et al.

    Args:
        spec: Shape, classes and pixel statistics of the data; images of at least 8x8.
        width: Filters of the first convolution; all others are proportional to it.
        normalization: ``[mean, std]``; None for none, since the paper's network takes pixels in [0, 1] as they are.

    Raises:
        ValueError: If the images are too small.
    """

    def __init__(self, spec: ImageSpec, width: int = 64, normalization: list[list[float]] | None = None) -> None:
        super().__init__(spec, [[0.0], [1.0]] if normalization is None else normalization)
        require_image_size("ConvPoolCNN", spec, minimum=8)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = spec.channels
        for number, multiple in enumerate([1, 2, 2, 4, 4, 8], start=1):
            layers[f"conv{number}"] = nn.Conv2d(before, multiple * width, kernel_size=3, padding=1)
            layers[f"relu{number}"] = nn.LeakyReLU(SLOPE)
            if number % 2 == 0:
                layers[f"pool{number // 2}"] = nn.AvgPool2d(2)
            before = multiple * width
        self.features = nn.Sequential(layers)
        self.head = nn.Sequential(
            OrderedDict(
                conv7=nn.Conv2d(before, spec.classes, kernel_size=3, padding=1),
                relu7=nn.LeakyReLU(SLOPE),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
            )
        )
        kaiming_init(self)
