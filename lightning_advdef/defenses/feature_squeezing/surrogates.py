"""Attackers who know that images are squeezed, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_advdef.attacks import Surrogate, SurrogateFactory
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access


class EvadingDetection(Surrogate):
    """What the attack maximises, minus weight * max(score - threshold, 0).

    Source: the adaptive attack of He et al., 2017, https://arxiv.org/abs/1706.04701, whose penalty on the detector's
    score is added to another loss. Squeezers have the gradient of :meth:`Purifier.with_gradient`.

    Args:
        defense: A :class:`FeatureSqueezingModule` with a threshold.
        weight: Of the penalty.
    """

    access: Access = "adaptive"

    def __init__(self, defense: nn.Module, weight: float = 10.0) -> None:
        super().__init__(defense)
        self.weight = weight

    def settings(self) -> dict[str, Any]:
        """The weight."""
        return {"weight": self.weight}

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Those of the defense, shape ``(1, N, K)``."""
        return self.defense(images, rng.stream("defense")).unsqueeze(0)

    def auxiliary(self, images: Tensor, labels: Tensor, rng: SampleRNG) -> Tensor:
        """The weighted penalty of each image."""
        defense: Any = self.defense
        scores = defense.scores(images, rng.stream("defense"), with_gradient=True)
        penalty: Tensor = self.weight * (scores - defense.threshold).clamp(min=0)
        return -penalty


class AllVersions(Surrogate):
    """The image and all its squeezed versions at once, so that none of them betrays the others.

    The attack maximises the mean of its loss over them, as it does over random draws.

    Args:
        defense: A :class:`FeatureSqueezingModule`.
    """

    access: Access = "adaptive"

    def __init__(self, defense: nn.Module) -> None:
        super().__init__(defense)
        squeezing: Any = self.defense
        self.draws = 1 + len(squeezing.squeezers)

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Those of the image, then of each squeezed version, shape ``(S, N, K)``."""
        defense: Any = self.defense
        versions: Tensor = defense.versions(images, rng.stream("defense"), with_gradient=True)
        return versions


def attackers() -> Mapping[str, SurrogateFactory]:
    """Surrogates by name."""
    return {"evading": EvadingDetection, "all_versions": AllVersions}
