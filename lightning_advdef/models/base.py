"""The contract of a network: pixels in [0, 1] in, logits out, normalisation inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_advdef.types import ImageSpec


class Normalize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, per channel.

    Args:
        mean: One value per channel, in [0, 1] pixel units.
        std: One positive value per channel, in [0, 1] pixel units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # constants of the architecture, so they stay out of the state dict
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, same shape as ``images`` ``(N, C, H, W)``."""
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """Images in [0, 1] to logits, as ``head(features(normalize(images)))``.

    Subclasses set ``features`` and ``head``; ``head`` maps what ``features`` gives to logits ``(N, K)`` and may be
    convolutional.

    Attributes:
        maybe_trained: Whether it may start with weights that were trained, and not with random ones.

    Args:
        spec: Shape, classes and pixel statistics of the data.
        normalization: ``[mean, std]``, each one value for all channels or one per channel, in place of the
            statistics of the data set.

    Raises:
        ValueError: If the normalisation does not fit the channels.
    """

    features: nn.Module
    head: nn.Module
    maybe_trained = False

    def __init__(self, spec: ImageSpec, normalization: list[list[float]] | None = None) -> None:
        super().__init__()
        self.spec = spec
        mean, std = _mean_and_std(spec, normalization)
        self.normalize = Normalize(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)`` with pixels in [0, 1]."""
        logits: Tensor = self.head(self.features(self.normalize(images)))
        return logits

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights by the names that they have in here, from a state dict of the network that this one is made of."""
        return state


def _mean_and_std(spec: ImageSpec, normalization: list[list[float]] | None) -> tuple[Sequence[float], Sequence[float]]:
    """The statistics of the data set, or those that replace them."""
    if normalization is None:
        return spec.mean, spec.std
    allowed = (1, spec.channels)
    if (
        len(normalization) != 2
        or any(len(values) not in allowed for values in normalization)
        or min(normalization[1]) <= 0
    ):
        raise ValueError(
            f"normalization must be [mean, std] with 1 or {spec.channels} values each and std > 0, got {normalization}"
        )
    return normalization[0], normalization[1]


NetworkFactory = Callable[[ImageSpec], Classifier]


def require_sides(network: str, spec: ImageSpec, multiple: int) -> None:
    """Refuses images that are not halved evenly as often as a network halves them.

    Raises:
        ValueError: If a side is no multiple.
    """
    if spec.height % multiple or spec.width % multiple:
        raise ValueError(
            f"{network} needs height and width in multiples of {multiple}, but the data ({spec.name}) has "
            f"{spec.height}x{spec.width}: resize it"
        )


def require_image_size(network: str, spec: ImageSpec, *, minimum: int = 1, exact: tuple[int, ...] = ()) -> None:
    """Refuses a data set whose images the architecture cannot take.

    Raises:
        ValueError: If height or width is below ``minimum``, or not one of the ``exact`` sizes.
    """
    sizes = {spec.height, spec.width}
    if min(sizes) < minimum or (exact and (len(sizes) > 1 or sizes.isdisjoint(exact))):
        wanted = f"{' or '.join(f'{s}x{s}' for s in exact)} pixels" if exact else f"at least {minimum}x{minimum} pixels"
        raise ValueError(
            f"{network} needs images of {wanted}, but the data ({spec.name}) has {spec.height}x{spec.width}: "
            "choose another network with --model.network, or resize the data"
        )
