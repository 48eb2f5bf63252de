"""Algorithm 2: the restorer is trained on embeddings of denoised images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import Tensor, nn

from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.defenses.base import global_seed
from lightning_advdef.defenses.fixed_examples import progress_shown, training_images, validation_images
from lightning_advdef.defenses.idfr.adversaries import Adversaries, Recipe
from lightning_advdef.defenses.idfr.embeddings import Embedded, EmbeddingPools, Pairing, embedded
from lightning_advdef.defenses.idfr.training import Networks, PartTraining
from lightning_advdef.errors import require_choice
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch


class RestorerTraining(PartTraining):
    """Eq. 6 on one pair of embeddings for each label of a batch, whose images do not count.

    Args:
        networks: See :class:`PartTraining`.
        recipe: See :class:`PartTraining`.
        pairing: See :meth:`EmbeddingPools.pairs`.

    Raises:
        ValueError: If the pairing is unknown.
    """

    def __init__(self, networks: Networks, recipe: Recipe, pairing: Pairing) -> None:
        super().__init__(networks, recipe)
        require_choice("pairing", pairing, Pairing)
        self.pairing = pairing
        self.pools: EmbeddingPools | None = None
        self.held_out: Embedded | None = None

    @property
    def frozen(self) -> list[nn.Module]:
        """The target and the denoiser."""
        return [self.networks.classifier, self.networks.denoiser]

    def begin(self, trainer: Trainer) -> None:
        """Embeds clean training images and the adversarial ones of every attack, behind the denoiser.

        Of validation images the adversarial ones, which no training of a part has seen.
        """
        super().begin(trainer)
        assert self.adversaries is not None
        known, device = self.adversaries, trainer.strategy.root_device
        fresh, validation = Adversaries(self.recipe, known.surrogate), validation_images(trainer)
        training, progress = training_images(trainer), progress_shown(trainer)
        self.held_out = None
        if trainer.is_global_zero:
            print(f"embedding {len(training)} training images, clean and attacked, before the first epoch")
        # Lightning brings its precision to training steps alone, and this comes before the first
        embed = partial(self._embed, trainer.precision_plugin.forward_context)
        self.pools = EmbeddingPools(
            *embedded(
                training,
                lambda batch: [batch.images, *self._adversarial(known, batch, "train")],
                embed,
                device,
                progress,
            )
        )
        if validation is not None:
            self.held_out = embedded(
                validation, lambda batch: self._adversarial(fresh, batch, "val"), embed, device, progress
            )

    def _adversarial(self, adversaries: Adversaries, batch: Batch, split: str) -> list[Tensor]:
        rng = SampleRNG.for_images(batch.indices, global_seed(), split).stream("adversary")
        return [adversaries.of(number, batch, rng, rng[:1]) for number in range(len(self.recipe.attacks))]

    def _embed(self, precision: Callable[[], AbstractContextManager[None]], images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``(N, d)`` and logits ``(N, K)``."""
        target, denoiser = self.frozen
        with attack_mode(target, denoiser), torch.no_grad(), precision():
            features = self.networks.embed(denoiser(images))
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            return features, self.networks.classifier.head(features)

    def validate(self) -> dict[str, Tensor]:
        """Accuracy on the adversarial validation images with the restorer, and without it."""
        if self.held_out is None:
            return {}
        assert self.networks.restorer is not None
        embeddings, labels, correct, _ = self.held_out
        restored = self.networks.classifier.head(self.networks.restorer(embeddings)).argmax(dim=1) == labels
        return {"adversarial_accuracy": restored.float().mean(), "unrestored_accuracy": correct.float().mean()}

    def loss(self, batch: Batch, rng: SampleRNG, common: SampleRNG) -> dict[str, Tensor]:
        """Cross-entropy of the head on restored mixtures."""
        assert self.pools is not None
        assert self.networks.restorer is not None
        restored = self.networks.restorer(self.pools.mixtures(batch.labels, rng, self.pairing))
        return {"loss": F.cross_entropy(self.networks.classifier.head(restored), batch.labels)}
