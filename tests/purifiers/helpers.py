"""Images, settings, and a purifier with a gradient."""

from dataclasses import dataclass

import torch

import lightning_advdef.purifiers as purifiers
from lightning_advdef.purifiers import (
    JPEG,
    BitDepth,
    Chain,
    GaussianBlur,
    Median,
    NonLocalMeans,
    Purifier,
    RandomResizePad,
    TotalVariation,
)
from lightning_advdef.rng import SampleRNG

EXPORTED = [getattr(purifiers, name) for name in purifiers.__all__ if name != "Purifier"]
SETTINGS = {
    BitDepth: [BitDepth(1), BitDepth(5)],
    Chain: [Chain([BitDepth(5), Median(2, padding="mirror")]), Chain([GaussianBlur(0.5), RandomResizePad()])],
    GaussianBlur: [GaussianBlur(0.8), GaussianBlur(3.0)],
    JPEG: [JPEG(10), JPEG(75)],
    Median: [Median(3), Median(4), Median(2, padding="mirror"), Median(5, padding="mirror")],
    NonLocalMeans: [NonLocalMeans(strength=20.0), NonLocalMeans(search=11, strength=40.0)],
    RandomResizePad: [RandomResizePad(), RandomResizePad(0.5)],
    TotalVariation: [
        TotalVariation(0.1),
        TotalVariation(0.1, method="split_bregman"),
        TotalVariation(0.1, keep=0.5, rounds=3),
        TotalVariation(0.1, method="split_bregman", keep=0.5, rounds=3),
    ],
}
ALL_SETTINGS = [purifier for listed in SETTINGS.values() for purifier in listed]


def random_images(count=5, channels=3, height=12, width=16):
    """Independent uniform pixels."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, height, width, generator=generator)


def structured_images(count=5, channels=3, height=12, width=16):
    """Ramps, on which lie bright squares of different size, with black and white among the pixels."""
    ramp = torch.linspace(0, 1, width).expand(count, channels, height, width).clone()
    for position in range(count):
        ramp[position, position % channels, 2 : 4 + position, 3 : 6 + position] = 1 - 0.1 * position
    return ramp


def apply(purifier, images, seed=0):
    """Purified images under the random numbers of a seed."""
    return purifier(images, SampleRNG.for_images(torch.arange(len(images)), seed))


@dataclass(frozen=True)
class Darker(Purifier):
    """Half the brightness, with noise if asked."""

    noise: float = 0.0

    stochastic = property(lambda self: self.noise > 0)
    differentiable = True

    def __call__(self, images, rng):
        return images / 2 + self.noise * rng.uniform(*images.shape[1:])
