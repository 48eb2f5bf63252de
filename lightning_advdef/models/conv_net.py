"""ConvNet, the small CIFAR-10 network of Deep Defense."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lightning_advdef.models.base import Classifier, require_image_size
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec


class ConvNet(Classifier):
    """Three 5x5 convolutions with 2x2 pooling, a 4x4 convolution, and a 1x1 convolution as head.

    Source: Yan et al., 2018, "Deep Defense", after the CIFAR example of matconvnet. The pools are 2x2, as in the
    authors' code; the matconvnet original has 3x3.

    Args:
        spec: Shape, classes and pixel statistics of the data; images of at least 32x32.
        normalization: ``[mean, std]`` in place of the statistics of the data set.

    Raises:
        ValueError: If the images are too small.
    """

    def __init__(self, spec: ImageSpec, normalization: list[list[float]] | None = None) -> None:
        super().__init__(spec, normalization)
        require_image_size("ConvNet", spec, minimum=32)
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(spec.channels, 32, kernel_size=5, padding=2),
                pool1=nn.MaxPool2d(2),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 32, kernel_size=5, padding=2),
                relu2=nn.ReLU(),
                pool2=nn.AvgPool2d(2),
                conv3=nn.Conv2d(32, 64, kernel_size=5, padding=2),
                relu3=nn.ReLU(),
                pool3=nn.AvgPool2d(2),
                conv4=nn.Conv2d(64, 64, kernel_size=4),
                relu4=nn.ReLU(),
            )
        )
        # the pool does nothing on 32x32 images, where conv4 leaves one pixel
        self.head = nn.Sequential(
            OrderedDict(
                conv5=nn.Conv2d(64, spec.classes, kernel_size=1), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()
            )
        )
        kaiming_init(self)
