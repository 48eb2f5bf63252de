"""Purifiers: what changes images before any classifier sees them.

Of the same shape and in [0, 1], but for ``TotalVariation``, whose iterations may leave it by a trifle.

| purifier            | source                               | stochastic   | differentiable | gradient for attackers |
| ------------------- | ------------------------------------ | ------------ | -------------- | ---------------------- |
| ``BitDepth``        | Xu et al., 2018                      | no           | no             | identity               |
| ``Chain``           | of the parts                         | if a part is | if all are     | of each part           |
| ``GaussianBlur``    | none; a control                      | no           | yes            | own                    |
| ``JPEG``            | Dziugaite et al., 2016               | no           | no             | kornia's codec         |
| ``Median``          | Xu et al., 2018                      | no           | yes            | own                    |
| ``NonLocalMeans``   | Buades et al., 2005; Xu et al., 2018 | no           | no             | identity               |
| ``RandomResizePad`` | Xie et al., 2018                     | yes          | yes            | own                    |
| ``TotalVariation``  | Rudin et al., 1992; Guo et al., 2018 | with keep    | no             | identity               |
"""

from lightning_advdef.purifiers.base import Purifier
from lightning_advdef.purifiers.bit_depth import BitDepth
from lightning_advdef.purifiers.chain import Chain
from lightning_advdef.purifiers.gaussian_blur import GaussianBlur
from lightning_advdef.purifiers.jpeg import JPEG
from lightning_advdef.purifiers.median import Median
from lightning_advdef.purifiers.non_local_means import NonLocalMeans
from lightning_advdef.purifiers.random_resize_pad import RandomResizePad
from lightning_advdef.purifiers.total_variation import TotalVariation

__all__ = [
    "JPEG",
    "BitDepth",
    "Chain",
    "GaussianBlur",
    "Median",
    "NonLocalMeans",
    "Purifier",
    "RandomResizePad",
    "TotalVariation",
]
