"""The perturbation generator: an image, its class and a gradient to an adversarial image, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_advdef.models.base import require_sides
from lightning_advdef.models.conv_pool_cnn import SLOPE
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec

INPUTS = ("gradient", "image", "label")


class PerturbationGenerator(nn.Module):
    """Two dense layers on the class, two transposed convolutions, and two convolutions that see image and gradient.

    Source: "Adversarial training with perturbation generator networks", Table 1 and Eq. 5. The two "upconvolutions" of
    stride 1 are convolutions, as in the authors' code. Eq. 5 prints a factor 2 where 1/2 maps to pixels.

    Args:
        spec: Shape and classes of the data; height and width must be multiples of ``2 ** upsamplings``.
        width: Filters of the convolutions.
        hidden: Units of the first dense layer.
        upsamplings: Transposed convolutions, each of which doubles height and width; the second dense layer gives as
            many pixels as are needed before them.
        inputs: What it sees, of ``gradient``, ``image``, ``label``; what is left out is fed as zeros (paper,
            Appendix D).
        normalize_gradient: Scale each image's gradient to unit l2 norm. The gradient of a probability vanishes where
            the classifier is sure, and convolutions cannot undo that; the paper does not.
        gradient_scale: Factor on the gradient. The authors' code differentiates the mean over a batch of 128, that is
            1/128 of the gradient of each image.
        reach: Share of tanh's range that pixels in [0, 1] take. At the authors' 0.999999 a black or white pixel stands
            where the slope is 2e-6, so that neither the generator nor its training can move it, which suits
            photographs alone; 0.9 lets them move.

    Raises:
        ValueError: If the images do not fit, or an input is unknown.
    """

    def __init__(
        self,
        spec: ImageSpec,
        width: int = 128,
        hidden: int = 1024,
        upsamplings: int = 2,
        inputs: list[str] = list(INPUTS),  # noqa: B006 - never changed
        normalize_gradient: bool = False,
        gradient_scale: float = 1.0,
        reach: float = 0.999999,
    ) -> None:
        super().__init__()
        multiple = 2**upsamplings
        require_sides("PerturbationGenerator", spec, multiple)
        if not set(inputs) <= set(INPUTS):
            raise ValueError(f"inputs must be some of {', '.join(INPUTS)}, got {', '.join(inputs)}")
        if not 0 < reach < 1:
            raise ValueError(f"reach must lie between 0 and 1, got {reach}")
        self.spec, self.inputs = spec, tuple(inputs)
        self.normalize_gradient, self.gradient_scale, self.reach = normalize_gradient, gradient_scale, reach
        classes, channels = spec.classes, spec.channels
        self.seed_shape = (width, spec.height // multiple, spec.width // multiple)
        self.dense1 = nn.Linear(classes, hidden)
        self.dense2 = nn.Linear(hidden + classes, math.prod(self.seed_shape))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width + classes, width, 3, stride=2, padding=1, output_padding=1)
            for _ in range(upsamplings)
        )
        self.conv1 = nn.Conv2d(width + 2 * channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1)
        kaiming_init(self)

    def forward(self, images: Tensor, labels: Tensor, gradient: Tensor) -> Tensor:
        """Adversarial images, float32, shape ``(N, C, H, W)``, in [0, 1].

        Args:
            images: Clean images in [0, 1], shape ``(N, C, H, W)``.
            labels: True classes, shape ``(N,)``.
            gradient: Gradient of each image's true-class probability by its pixels, shape ``(N, C, H, W)``.
        """
        output = self.perturbation(images, labels, gradient).float()
        variables = ((2 * images - 1) * self.reach).atanh() + output  # bfloat16 would round 0.999999 to 1
        return ((variables.tanh() / self.reach + 1) / 2).clamp(0, 1)

    def perturbation(self, images: Tensor, labels: Tensor, gradient: Tensor) -> Tensor:
        """What is added to the variables of Eq. 5, shape ``(N, C, H, W)``, without bounds."""
        if self.normalize_gradient:
            norm = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
            gradient = gradient / norm.view(-1, 1, 1, 1)
        classes = self._or_zeros("label", F.one_hot(labels, self.spec.classes).to(images.dtype))
        seen = [self._or_zeros("gradient", gradient * self.gradient_scale), self._or_zeros("image", 2 * images - 1)]
        hidden = F.leaky_relu(self.dense1(classes), SLOPE)
        hidden = F.leaky_relu(self.dense2(torch.cat([hidden, classes], dim=1)), SLOPE)
        maps = hidden.view(-1, *self.seed_shape)
        for layer in self.up:
            maps = F.leaky_relu(layer(join(maps, _as_maps(classes, maps))), SLOPE)
        maps = F.leaky_relu(self.conv1(join(maps, *seen)), SLOPE)
        output: Tensor = self.conv2(maps)
        return output

    def _or_zeros(self, name: str, values: Tensor) -> Tensor:
        return values if name in self.inputs else torch.zeros_like(values)


GeneratorFactory = Callable[[ImageSpec], PerturbationGenerator]


def join(maps: Tensor, *others: Tensor) -> Tensor:
    """Along the channels, in the maps' dtype and memory format, which ``cat`` would give up for one that differs."""
    channels_last = maps.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.cat([maps, *(other.to(maps.dtype).contiguous(memory_format=layout) for other in others)], dim=1)


def _as_maps(values: Tensor, like: Tensor) -> Tensor:
    """Values ``(N, D)`` as constant maps ``(N, D, H, W)``."""
    return values[:, :, None, None].expand(-1, -1, *like.shape[2:])
