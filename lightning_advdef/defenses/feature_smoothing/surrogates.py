"""Attackers who know Active Defense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.attacks import BPDA, Surrogate, SurrogateFactory, Undefended, Unrolled
from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access


class PenalizedFeatureLoss(Surrogate):
    """The paper's own adaptive attack: what the attack maximises, plus weight * max(feature loss, delta) (Eq. 4).

    Args:
        defense: A :class:`FeatureSmoothingModule`.
        weight: Of the feature loss, of either sign (lambda); the paper has sizes from 0.1 to 100.
        of: What answers; the paper does not say whether its attacker's network held the defense.
    """

    access: Access = "adaptive"

    def __init__(self, defense: nn.Module, weight: float = 1.0, of: SurrogateFactory = Undefended) -> None:
        super().__init__(defense)
        self.weight, self.inner = weight, of(defense)
        self.draws = self.inner.draws

    def settings(self) -> dict[str, Any]:
        """The weight and what answers."""
        return {"weight": self.weight, "of": self.inner.describe()}

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Those of the inner surrogate."""
        return self.inner.logits(images, rng)

    def auxiliary(self, images: Tensor, labels: Tensor, rng: SampleRNG) -> Tensor:
        """The weighted hinge of each image."""
        defense: Any = self.defense
        return self.weight * feature_loss(defense.tap.features(images)).clamp(min=defense.delta)


class FixedNoise(BPDA):
    """BPDA against Active Defense with the same noise in every step, so that steps are compared under one draw.

    Each draw of an EOT has a noise of its own. A defense whose noise has a seed is attacked with that, as by BPDA.

    Args:
        defense: A :class:`FeatureSmoothingModule`.
        seed: Of the noise.
    """

    access: Access = "adaptive"

    def __init__(self, defense: nn.Module, seed: int = 0) -> None:
        super().__init__(defense)
        self.seed = seed

    def settings(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def deployed(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Smoothed images."""
        draws = int((rng.rows == rng.rows[0]).sum())
        draw = torch.arange(draws, device=images.device).repeat_interleave(len(images) // draws)
        return super().deployed(images, SampleRNG.for_images(draw, self.seed))


class CoarselyUnrolled(Unrolled):
    """The chain rule through an Active Defense of few and large steps in place of the deployed one.

    Args:
        defense: A :class:`FeatureSmoothingModule`.
        steps: Most steps.
        factor: Of the defense's step size.
    """

    def __init__(self, defense: nn.Module, steps: int = 40, factor: float = 10.0) -> None:
        super().__init__(defense)
        self.steps, self.factor = steps, factor

    @property
    def purifier(self) -> Any:
        """The coarse loop."""
        own: Any = super().purifier
        return replace(own, step_size=own.step_size * self.factor, max_iter=min(self.steps, own.max_iter))

    def settings(self) -> dict[str, Any]:
        """Steps and factor."""
        return {"steps": self.steps, "factor": self.factor}


class FeatureTarget(BPDA):
    """Pulls the smoothed image's features to those of a smoothed image of another class.

    The gradient takes Active Defense for the identity. The other image is one of those that calibration kept, of the
    next class.

    Args:
        defense: A calibrated :class:`FeatureSmoothingModule`.
        weight: Of the relative squared distance of the features.
    """

    access: Access = "adaptive"

    def __init__(self, defense: nn.Module, weight: float = 10.0) -> None:
        super().__init__(defense)
        self.weight = weight
        self._purified: Tensor | None = None
        self._targets: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """The weight."""
        return {"weight": self.weight}

    def _purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        self._purified = super()._purify(images, rng)
        return self._purified

    def auxiliary(self, images: Tensor, labels: Tensor, rng: SampleRNG) -> Tensor:
        """Minus the weighted squared distance, relative to the size of the target's features; mean over votes.

        Raises:
            ValueError: If calibration has kept no image of another class.
        """
        assert self._purified is not None
        votes = len(self._purified) // len(images)
        targets = self._of_other_classes(labels).repeat(votes, 1)
        features = self._features(self._purified).flatten(1)
        self._purified = None  # it holds the graph of a step
        distance = (features - targets).square().sum(dim=1) / targets.square().sum(dim=1)
        return -self.weight * distance.view(votes, -1).mean(dim=0)

    def _of_other_classes(self, labels: Tensor) -> Tensor:
        """Features of an image of the next class of which there is one."""
        if self._targets is None:
            self._targets = self._smoothed_anchors()
        count = len(self._targets)
        classes = (labels.unsqueeze(1) + torch.arange(1, count, device=labels.device)) % count
        usable = self._targets.isfinite().all(dim=1)[classes]
        if not usable.any(dim=1).all():
            raise ValueError(
                "FeatureTarget needs images of other classes, which calibration keeps: run advdef calibrate -o FILE"
            )
        chosen = classes.gather(1, usable.byte().argmax(dim=1, keepdim=True)).squeeze(1)
        return self._targets[chosen]

    def _features(self, images: Tensor) -> Tensor:
        defense: Any = self.defense
        found: Tensor = defense.tap.features(images)
        return found

    def _smoothed_anchors(self) -> Tensor:
        """Features of the smoothed images of calibration, without noise, shape ``(A, ...)`` flattened; NaN for none."""
        defense: Any = self.defense
        anchors: Tensor = defense.calibrated_anchors
        # kept for all calls, so they must not depend on what the first one computes in
        with torch.no_grad(), torch.autocast(anchors.device.type, enabled=False):
            smoothed = replace(defense.purifier, noise=0.0)(anchors, SampleRNG.default(anchors)).images
            return self._features(smoothed).flatten(1)


def attackers() -> Mapping[str, SurrogateFactory]:
    """Surrogates by name, of those that are no matter of settings alone as BPDA, EOT and Undefended are."""
    return {
        "feature_loss": partial(PenalizedFeatureLoss, weight=10**0.5),
        "minus_feature_loss": partial(PenalizedFeatureLoss, weight=-(10**0.5)),
        "feature_target": FeatureTarget,
        "fixed_noise": FixedNoise,
        "unrolled10": partial(Unrolled, last=10),
        "coarsely_unrolled": CoarselyUnrolled,
        "unrolled": Unrolled,
    }
