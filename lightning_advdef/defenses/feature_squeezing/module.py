"""FeatureSqueezingModule: a classifier that refuses images on which squeezing changes its mind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import CatMetric

from lightning_advdef.attacks import SurrogateFactory
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.data import DataModule
from lightning_advdef.defenses.base import DefenseModule
from lightning_advdef.defenses.calibration import chosen, stated, validation_batches
from lightning_advdef.defenses.feature_squeezing.surrogates import attackers
from lightning_advdef.models import NetworkFactory
from lightning_advdef.purifiers import Purifier
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch


class FeatureSqueezingModule(DefenseModule):
    """Feature Squeezing as the detector of its paper.

    Source: Xu et al., 2018, https://arxiv.org/abs/1704.01155, section V. The classifier answers for the image as it is;
    the image is rejected if the answer to one of its squeezed versions lies too far from that. Training is standard.

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        squeezers: What squeezes the image, each by itself.
        threshold: Score above which an image is rejected; None for the value that calibration found, which
            ``weights`` bring only if it was found for these squeezers and this ``false_positives``.
        false_positives: Share of clean validation images that calibration lets be rejected, at most.
        kwargs: See :class:`DefenseModule`.

    Raises:
        ValueError: If there is no squeezer or a number is out of range.
    """

    calibrated_for: ClassVar = {"calibrated_threshold": ("squeezers", "false_positives")}
    calibrated_threshold: Tensor

    def __init__(
        self,
        network: NetworkFactory,
        squeezers: list[Purifier],
        threshold: float | None = None,
        false_positives: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if not squeezers:
            raise ValueError("FeatureSqueezingModule needs at least 1 of squeezers, got none")
        if not 0 <= false_positives < 1:
            raise ValueError(f"false_positives is a share from 0 to below 1, got {false_positives}")
        self.squeezers = squeezers
        self.stochastic = any(squeezer.stochastic for squeezer in squeezers)
        self.given_threshold = threshold
        self.false_positives = false_positives
        self.val_scores = CatMetric()
        self.register_buffer("calibrated_threshold", torch.tensor(torch.nan))

    @property
    def threshold(self) -> float:
        """The score above which an image is rejected.

        Raises:
            ValueError: If none was given and none was calibrated.
        """
        return chosen("Feature Squeezing", "threshold", self.given_threshold, self.calibrated_threshold)

    def in_use(self) -> dict[str, Any]:
        """The threshold and where it is from."""
        return stated("threshold", self.threshold, self.given_threshold)

    @property
    def untraceable(self) -> str | None:
        """It has more to say than logits."""
        return "a file that gives logits would lose which images it rejects"

    def versions(self, images: Tensor, rng: SampleRNG, with_gradient: bool = False) -> Tensor:
        """Logits of images and of their squeezed versions.

        Args:
            images: Shape ``(N, C, H, W)``.
            rng: The images' random numbers.
            with_gradient: Give each version the gradient that an attacker follows.

        Returns:
            Shape ``(1 + squeezers, N, K)``, those of the images first.
        """
        squeezed = [
            (squeezer.with_gradient if with_gradient else squeezer)(images, rng.stream("squeezer", position))
            for position, squeezer in enumerate(self.squeezers)
        ]
        return torch.stack([self.classify(version) for version in (images, *squeezed)])

    def scores(self, images: Tensor, rng: SampleRNG, with_gradient: bool = False) -> Tensor:
        """Largest L1 distance between the softmax of an image and those of its squeezed versions.

        Args:
            images: Shape ``(N, C, H, W)``.
            rng: The images' random numbers.
            with_gradient: Give each version the gradient that an attacker follows.

        Returns:
            Scores from 0 to 2, shape ``(N,)``.
        """
        answer, *others = self.versions(images, rng, with_gradient).softmax(dim=2)
        return torch.stack([(other - answer).abs().sum(dim=1) for other in others]).amax(dim=0)

    def rejects(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Whether images are rejected, bool, shape ``(N,)``."""
        return self.scores(images, rng) > self.threshold

    def adaptive_surrogates(self) -> Mapping[str, SurrogateFactory]:
        """Attackers who know the detector."""
        return attackers()

    def validation_logits(self, batch: Batch) -> Tensor:
        """Those of the classifier; the scores are noted on the way."""
        self._note(batch)
        return super().validation_logits(batch)

    def on_validation_epoch_end(self) -> None:
        """Calibrates, as the authors' code: the smallest score that few enough images exceed."""
        scores = torch.as_tensor(self.val_scores.compute()).flatten()
        self.val_scores.reset()
        kept = max(1, math.ceil(len(scores) * (1 - self.false_positives)))
        self.calibrated_threshold.copy_(scores.kthvalue(kept).values)

    def _note(self, batch: Batch) -> None:
        self.val_scores.update(self.scores(batch.images, SampleRNG.for_images(batch.indices, split="val")))

    def calibrate(self, data: DataModule) -> dict[str, float]:
        """``threshold``: what at most the given share of the clean images of the validation split exceeds.

        Raises:
            ValueError: If there is no validation split.
        """
        self.val_scores.reset()
        with attack_mode(self), torch.no_grad():
            for batch in validation_batches(data, self.device):
                self._note(batch)
        self.on_validation_epoch_end()
        return {"threshold": float(self.calibrated_threshold)}
