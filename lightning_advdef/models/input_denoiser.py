"""The input denoiser of IDFR: a small U-Net that adds a correction to an image."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from lightning_advdef.models.base import require_sides
from lightning_advdef.models.denoiser import Denoiser, join
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec

Activation = Literal["relu", "linear"]

_MULTIPLE = 4  # two convolutions of stride 2


class InputDenoiser(Denoiser):
    """Nine convolutions with batch normalisation and ReLU on three resolutions; the last one's output is added.

    Source: "Enhanced countering adversarial attacks via input denoising and feature restoring" (ICLR 2022 submission),
    Table 6, with the strides and the bilinear upsampling (corners aligned) of the authors' PyTorch file: 669,033
    parameters for three channels at width 32.

    Args:
        spec: Shape of the images; height and width must be multiples of 4.
        width: Filters of the first convolution; the others have 1, 2, 3, 4 or 6 times as many.
        skip_from: Convolution whose output the full resolution gets past the lower ones: 2 in the paper, 1 in the
            authors' code.
        residual_activation: Whether ReLU ends the last convolution, too, as in Table 6, so that the correction can
            brighten only; the notebooks behind the published numbers end in a linear layer. A linear correction
            begins at 0, from where ReLU would not get a gradient.

    Raises:
        ValueError: If a side is no multiple of 4, or a setting is unknown.
    """

    def __init__(
        self,
        spec: ImageSpec,
        width: int = 32,
        skip_from: Literal[1, 2] = 2,
        residual_activation: Activation = "linear",
    ) -> None:
        super().__init__()
        require_sides(type(self).__name__, spec, _MULTIPLE)
        if width < 1 or skip_from not in (1, 2) or residual_activation not in get_args(Activation):
            raise ValueError(
                "InputDenoiser needs width >= 1, skip_from 1 or 2 and residual_activation relu or linear, got "
                f"{width}, {skip_from} and {residual_activation!r}"
            )
        self.skip_from, self.residual_activation = skip_from, residual_activation
        self.layer1 = _layer(spec.channels, width)
        self.layer2 = _layer(width, width)
        self.layer3 = _layer(width, 2 * width, stride=2)
        self.layer4 = _layer(2 * width, 2 * width)
        self.layer5 = _layer(2 * width, 4 * width, stride=2)
        self.layer6 = _layer(6 * width, 6 * width)
        self.layer7 = _layer(6 * width, 2 * width)
        self.layer8 = _layer(3 * width, 3 * width)
        self.layer9 = _layer(3 * width, spec.channels, activation=residual_activation)
        kaiming_init(self)
        if residual_activation == "linear":
            last = self.layer9[1]
            assert isinstance(last, nn.BatchNorm2d)
            nn.init.zeros_(last.weight)

    def residual(self, images: Tensor) -> Tensor:
        """What is added to images ``(N, C, H, W)``, same shape."""
        first = self.layer1(images)
        second = self.layer2(first)
        middle = self.layer4(self.layer3(second))
        maps = self.layer7(self.layer6(join(middle, self.layer5(middle))))
        found: Tensor = self.layer9(self.layer8(join(first if self.skip_from == 1 else second, maps)))
        return found


def _layer(before: int, after: int, stride: int = 1, activation: Activation = "relu") -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after)]
    return nn.Sequential(*parts, *([nn.ReLU()] if activation == "relu" else []))
