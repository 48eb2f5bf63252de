"""LeNet, the convolutional MNIST network of Deep Defense and RIDE."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lightning_advdef.models.base import Classifier, require_image_size
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec


def _size_after_pools(size: int) -> int:
    """Rows left of ``size`` rows after two times 5x5 convolution and 2x2 pooling."""
    return ((size - 4) // 2 - 4) // 2


class LeNet(Classifier):
    """Two 5x5 convolutions (20 and 50 channels), each max-pooled, then 500 units with ReLU and a linear head.

    Source: Yan et al., 2018, "Deep Defense", after the MNIST example of matconvnet.

    Args:
        spec: Shape, classes and pixel statistics of the data; images of at least 16x16.
        conv_relu: Whether ReLU follows each convolution, as in RIDE's MNIST network; the original has none there.
        normalization: ``[mean, std]`` in place of the statistics of the data set.

    Raises:
        ValueError: If the images are too small.
    """

    def __init__(
        self, spec: ImageSpec, conv_relu: bool = False, normalization: list[list[float]] | None = None
    ) -> None:
        super().__init__(spec, normalization)
        require_image_size("LeNet", spec, minimum=16)
        pixels = _size_after_pools(spec.height) * _size_after_pools(spec.width)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (before, after) in enumerate([(spec.channels, 20), (20, 50)], start=1):
            layers[f"conv{number}"] = nn.Conv2d(before, after, kernel_size=5)
            if conv_relu:
                layers[f"conv_relu{number}"] = nn.ReLU()
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(50 * pixels, 500)
        layers["relu1"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(500, spec.classes)
        kaiming_init(self)
