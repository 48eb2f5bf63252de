"""StandIn: a small differentiable network from images to what a purifier makes of them."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_advdef.models.initialization import kaiming_init

_KERNEL = 7
_DILATIONS = (1, 2, 3, 4, 3, 2, 1)


class StandIn(nn.Module):
    """One linear convolution, plus seven dilated ones with ReLU between them, which see 33x33 pixels.

    Source of the seven: Zhang et al., 2017, https://arxiv.org/abs/1704.03264, section 4.1, the denoiser IRCNN. Without
    batch normalisation, so that it is the same network in training and in use. It begins as the identity.

    Args:
        channels: Colour channels of the images.
        width: Filters of each convolution; the paper has 64.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        counts = [channels, *[width] * (len(_DILATIONS) - 1), channels]
        layers = [
            nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
            for inputs, outputs, dilation in zip(counts, counts[1:], _DILATIONS, strict=False)
        ]
        self.residual = nn.Sequential(*(part for layer in layers[:-1] for part in (layer, nn.ReLU())), layers[-1])
        self.linear = nn.Conv2d(channels, channels, _KERNEL, padding=_KERNEL // 2)
        kaiming_init(self)
        nn.init.dirac_(self.linear.weight)
        nn.init.zeros_(layers[-1].weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` of the same shape; they may leave [0, 1]."""
        purified: Tensor = self.linear(images) + self.residual(images)
        return purified
