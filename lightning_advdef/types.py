"""What travels between the parts: a batch, the description of a data set, and the protocol of a defense."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_advdef.rng import SampleRNG

Norm = Literal["linf", "l2", "l1"]
Access = Literal["white", "bpda", "gray", "transfer", "query", "adaptive", "none"]
# of attackers who differentiate the deployed defense
DIFFERENTIATING: tuple[Access, ...] = ("white", "bpda", "adaptive")


Purify = Callable[[Tensor, "SampleRNG"], Tensor]


class Batch(NamedTuple):
    """What every DataModule yields.

    Attributes:
        images: Pixels in [0, 1], float32, shape ``(N, C, H, W)``.
        labels: Class of each image, int64, shape ``(N,)``.
        indices: Position of each image in its full split, int64, shape ``(N,)``.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


def slices(count: int, size: int) -> list[slice]:
    """The rows of a batch of ``count`` images, at most ``size`` at a time."""
    return [slice(first, first + size) for first in range(0, count, size)]


class ImageSpec(NamedTuple):
    """Shape, number of classes and pixel statistics of a data set.

    Attributes:
        name: A name of the table in ``data/specs.py``, or the text ``CxHxWxK`` that made it.
        channels: Colour channels.
        height: Rows.
        width: Columns.
        classes: Number of classes.
        mean: Mean of each channel, in [0, 1] pixel units.
        std: Standard deviation of each channel, in [0, 1] pixel units.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one image."""
        return (self.channels, self.height, self.width)


class Defense(Protocol):
    """What an attack's surrogate and the evaluation may use of a defense (``DefenseModule`` has all of it).

    A detector also has ``rejects(images, rng)``: which images it refuses to classify, bool, shape ``(N,)``.

    Attributes:
        stochastic: Whether it draws random numbers.
        fixed_shape: Set in strict mode: no image may leave the batch within the test-time part either.
    """

    stochastic: bool
    fixed_shape: bool

    @property
    def undefended(self) -> nn.Module:
        """The classifier without its test-time part, images to logits."""

    def __call__(self, images: Tensor, rng: SampleRNG | None = None) -> Tensor:
        """Logits ``(N, K)`` of the deployed defense."""

    def purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """The test-time part before the classifier, images to images; the identity if there is none."""

    def deploy(self, images: Tensor, rng: SampleRNG, purify: Purify) -> Tensor:
        """What the deployed defense answers with ``purify`` in the place of its own, votes included."""

    def adaptive_surrogates(self) -> Mapping[str, Any]:
        """Surrogates that an attacker who knows this defense would use, by name."""


class Purified(NamedTuple):
    """What an iterative purifier made.

    Attributes:
        images: Shape ``(N, C, H, W)``; they may leave [0, 1].
        steps: Steps that each image took, int64, shape ``(N,)``.
        capped: Which images were not finished when they had taken all the steps they may, bool, shape ``(N,)``.
    """

    images: Tensor
    steps: Tensor
    capped: Tensor


class IterativePurifier(Protocol):
    """A test-time part that changes images step by step (``defense.purifier``)."""

    max_iter: int

    def init(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Where the steps start, with the graph of the images."""

    def step(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images after a step, and which of them were not finished before it, bool, shape ``(N,)``.

        It has a graph if the images require gradients.
        """

    def run(self, images: Tensor, limits: Tensor | None = None) -> Purified:
        """All steps, or at most as many as the limits ``(N,)`` say, without a graph."""


class Eps(float):
    """A size in pixel units that may be written ``8/255`` or ``0.2*0.117``."""

    _product = re.compile(r"\s*([^*/\s]+)\s*([*/])\s*([^*/\s]+)\s*")

    def __new__(cls, value: str | float) -> Eps:
        """Reads a number, a quotient or a product.

        Raises:
            ValueError: If the text is none of the three.
        """
        try:
            match = cls._product.fullmatch(value) if isinstance(value, str) else None
            if match is None:
                return super().__new__(cls, value)
            left, sign, right = float(match[1]), match[2], float(match[3])
            return super().__new__(cls, left / right if sign == "/" else left * right)
        except (ValueError, TypeError, ZeroDivisionError, OverflowError):
            raise ValueError(f"eps must be a number such as 0.3, 8/255 or 0.2*0.117, got {value!r}") from None
