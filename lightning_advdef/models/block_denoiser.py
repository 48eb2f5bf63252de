"""The larger input denoiser of IDFR's notebooks: a U-Net of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_advdef.models.base import require_sides
from lightning_advdef.models.denoiser import Denoiser, join
from lightning_advdef.models.initialization import kaiming_init
from lightning_advdef.types import ImageSpec


class BlockDenoiser(Denoiser):
    """Blocks of 3x3 convolutions with batch normalisation and ReLU, down and up again, and a linear 1x1 convolution.

    Source: notebooks of "Enhanced countering adversarial attacks via input denoising and feature restoring" (ICLR 2022
    submission), https://github.com/ID-FR/IDFR: two convolutions at full resolution, three at each lower one, of which
    the first has stride 2 on the way down. The defaults are those for CIFAR (6,905,475 parameters); that for MNIST has
    ``widths: [32, 64, 128]``. Lower resolutions come back up as in ``InputDenoiser``, and the correction begins at 0.

    Args:
        spec: Shape of the images; height and width must be multiples of 2 for each width but the first.
        widths: Filters on each resolution, the full one first.

    Raises:
        ValueError: If a side does not fit, or a width is not positive.
    """

    def __init__(self, spec: ImageSpec, widths: Sequence[int] = (64, 128, 256, 256)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"BlockDenoiser needs widths of at least 1, got {list(widths)}")
        require_sides(type(self).__name__, spec, 2 ** (len(widths) - 1))
        self.down = nn.ModuleList([_block(spec.channels, widths[0], 2)])
        self.down.extend(_block(before, after, 3, stride=2) for before, after in pairwise(widths))
        self.up = nn.ModuleList(
            _block(high + low, high, 3 if level else 2) for level, (high, low) in enumerate(pairwise(widths))
        )
        self.last = nn.Conv2d(widths[0], spec.channels, 1)
        kaiming_init(self)
        nn.init.zeros_(self.last.weight)

    def residual(self, images: Tensor) -> Tensor:
        """What is added to images ``(N, C, H, W)``, same shape."""
        levels = [self.down[0](images)]
        for block in self.down[1:]:
            levels.append(block(levels[-1]))
        maps = levels.pop()
        for block in reversed(self.up):
            maps = block(join(levels.pop(), maps))
        found: Tensor = self.last(maps)
        return found


def _block(before: int, after: int, convolutions: int, stride: int = 1) -> nn.Sequential:
    """Convolutions, of which the first one changes width and resolution."""
    layers: list[nn.Module] = []
    for inputs, step in [(before, stride)] + (convolutions - 1) * [(after, 1)]:
        layers += [nn.Conv2d(inputs, after, 3, stride=step, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)
