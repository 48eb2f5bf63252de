"""A purifier with a gradient and a stand-in that differ."""

from dataclasses import dataclass

from torch import nn

from lightning_advdef.purifiers import Purifier


@dataclass(frozen=True)
class Darker(Purifier):
    """Half the brightness, with noise if asked; differentiable, with a stand-in of another slope."""

    noise: float = 0.0

    stochastic = property(lambda self: self.noise > 0)
    differentiable = True

    def __call__(self, images, rng):
        return images / 2 + self.noise * rng.uniform(*images.shape[1:])

    def stand_in(self):
        return nn.AvgPool2d(1)
