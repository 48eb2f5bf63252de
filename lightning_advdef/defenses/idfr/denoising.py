"""Algorithm 1: the denoiser is trained before the target."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_advdef.defenses.idfr.adversaries import Recipe
from lightning_advdef.defenses.idfr.training import Networks, PartTraining
from lightning_advdef.errors import require_choice
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

DenoiserLoss = Literal["ce", "feature_l1"]


class DenoiserTraining(PartTraining):
    """Eq. 3 on an adversarial and some noisy copies of each image; one pass of all.

    Args:
        networks: See :class:`PartTraining`.
        recipe: See :class:`PartTraining`.
        distance: Cross-entropy (``ce``), or mean absolute distance to the features of the clean image.
        noise: Standard deviation of the noise on clean images, in pixel units.
        rounds: Noisy copies of each image; together they weigh as much as the adversarial one.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, networks: Networks, recipe: Recipe, distance: DenoiserLoss, noise: float, rounds: int) -> None:
        super().__init__(networks, recipe)
        require_choice("denoiser_loss", distance, DenoiserLoss)
        if noise < 0 or rounds < 0:
            raise ValueError(
                f"IDFR needs noise and noise_rounds of at least 0, got {noise} and {rounds}: change --model.noise or "
                "--model.noise_rounds"
            )
        self.distance, self.noise, self.rounds = distance, noise, rounds

    @property
    def frozen(self) -> list[nn.Module]:
        """The target."""
        return [self.networks.classifier]

    def loss(self, batch: Batch, rng: SampleRNG, common: SampleRNG) -> dict[str, Tensor]:
        """That of the adversarial images, that of the noisy ones, and their mean."""
        assert self.adversaries is not None
        copies = [self.adversaries.draw(batch, rng.stream("adversary"), common)]
        copies += [self._noisy(batch.images, rng.stream("noise", round_)) for round_ in range(self.rounds)]
        losses = self._distance(self.networks.denoiser(torch.cat(copies)), batch).view(len(copies), -1)
        adversarial = losses[0].mean()
        if self.rounds == 0:
            return {"loss": adversarial}
        noisy = losses[1:].mean()
        return {"loss": (adversarial + noisy) / 2, "adversarial_loss": adversarial, "noisy_loss": noisy}

    def _distance(self, denoised: Tensor, batch: Batch) -> Tensor:
        """Of each copy of the batch's images from what the target should see, shape ``(copies * N,)``."""
        copies = len(denoised) // len(batch.labels)
        if self.distance == "ce":
            return F.cross_entropy(self.networks.classifier(denoised), batch.labels.repeat(copies), reduction="none")
        with torch.no_grad():
            clean = self.networks.embed(batch.images).flatten(1)
        return (self.networks.embed(denoised).flatten(1) - clean.repeat(copies, 1)).abs().mean(dim=1)

    def _noisy(self, images: Tensor, rng: SampleRNG) -> Tensor:
        return (images + self.noise * rng.normal(*images.shape[1:])).clamp(0, 1)
