"""IDFRModule: a denoiser before, and a restorer of features within, a classifier that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_advdef.attacks import FGSM, Attack, FullGradient, SurrogateFactory, Transfer
from lightning_advdef.checkpoints import plain
from lightning_advdef.defenses.base import DefenseModule, global_seed
from lightning_advdef.defenses.fixed_examples import Leaves
from lightning_advdef.defenses.idfr.adversaries import Recipe
from lightning_advdef.defenses.idfr.denoising import DenoiserLoss, DenoiserTraining
from lightning_advdef.defenses.idfr.embeddings import Pairing
from lightning_advdef.defenses.idfr.loading import load_networks
from lightning_advdef.defenses.idfr.presets import Preset, settings_of
from lightning_advdef.defenses.idfr.restoring import RestorerTraining
from lightning_advdef.defenses.idfr.training import PartTraining
from lightning_advdef.errors import require_choice
from lightning_advdef.models import Denoiser, DenoiserFactory, FeatureRestorer, NetworkFactory, RestorerFactory
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Eps

Stage = Literal["denoise", "restore"]
Parts = Literal["target", "denoiser", "all"]


class IDFRModule(DefenseModule):
    """Input denoiser (ID) and feature restorer (FR) around a frozen target.

    Source: "Enhanced countering adversarial attacks via input denoising and feature restoring" (ICLR 2022 submission).
    Two trainings: ``denoise`` trains a U-Net before the target (Algorithm 1), ``restore`` then a dense network between
    the target's features and its head (Algorithm 2). The answer is ``head(restorer(features(denoiser(images))))``,
    an ordinary differentiable function. The part in training starts anew, all others come from ``weights`` and stay.

    Args:
        network: Architecture of the target, called with the data set's ``ImageSpec``.
        stage: What a ``fit`` trains; also what there is: only ``restore`` has a restorer.
        parts: What answers: the ``target`` alone, with its ``denoiser``, or ``all`` that there is.
        preset: What a setting below that is None gets: what the README of this folder recommends, the paper's, or that
            of the authors' notebooks. The optimizer is not part of it: Adam with a rate of 0.01 in the paper, 0.001 in
            the code.
        denoiser: Architecture of the denoiser, called likewise.
        restorer: Architecture of the restorer, called with the width of the target's embeddings.
        denoiser_loss: Cross-entropy (the paper), or mean absolute distance to the features of the clean image (the
            authors' code).
        attacks: Adversarial training images: one attack, or several of which every batch draws one; None for FGSM with
            8/255.
        largest_eps: If given, every batch draws its budget from 0 to it, in place of the attacks' own.
        leaves: Whether attacks drive images away from the target's ``prediction`` or from the ``label``, which the
            perturbation then tells.
        source: What the attacks differentiate, given the target: itself, or in YAML a ``Transfer``.
        cache: Folder of adversarial training images, made once per source, attack and budget; None to make them anew
            in every step.
        noise: Standard deviation of the noise on clean training images, in pixel units.
        noise_rounds: Noisy copies of each clean image in a step; together they weigh as much as the adversarial one.
            0 leaves them out, as the authors' code does.
        pairing: See :meth:`EmbeddingPools.pairs`.
        parts_weights: Checkpoint of another target whose trained parts are taken; ``weights`` then holds the target
            and, except in a ``fit``, no parts of its own.
        kwargs: See :class:`DefenseModule`.

    Raises:
        ValueError: If a setting is out of range, or there is no embedding to restore.
    """

    starts: ClassVar[tuple[str, ...]] = ("weights", "parts_weights")

    def __init__(
        self,
        network: NetworkFactory,
        stage: Stage = "denoise",
        parts: Parts = "all",
        preset: Preset = "recommended",
        denoiser: DenoiserFactory | None = None,
        restorer: RestorerFactory | None = None,
        denoiser_loss: DenoiserLoss | None = None,
        attacks: list[Attack] | None = None,
        largest_eps: Eps | None = None,
        leaves: Leaves = "prediction",
        source: SurrogateFactory = FullGradient,
        cache: str | None = None,
        noise: Eps = Eps("8/255"),  # noqa: B008 - a number
        noise_rounds: int | None = None,
        pairing: Pairing | None = None,
        parts_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        require_choice("stage", stage, Stage)
        require_choice("parts", parts, Parts)
        self.stage, self.parts, self.parts_weights = stage, parts, parts_weights
        given = {"denoiser": denoiser, "restorer": restorer, "denoiser_loss": denoiser_loss, "pairing": pairing}
        chosen = settings_of(preset, self.spec, given | {"noise_rounds": noise_rounds})
        self.hparams.update(plain(chosen))  # so that checkpoints outlive presets
        self.denoiser: Denoiser = chosen["denoiser"](self.spec)
        self.restorer: FeatureRestorer | None = None
        if stage == "restore":
            self.restorer = chosen["restorer"](self._embedding_width())
        recipe = Recipe([FGSM(Eps("8/255"))] if attacks is None else attacks, largest_eps, leaves, source, cache)
        trainings = {
            "denoise": DenoiserTraining(self, recipe, chosen["denoiser_loss"], noise, chosen["noise_rounds"]),
            "restore": RestorerTraining(self, recipe, chosen["pairing"]),
        }
        self.part_training: PartTraining = trainings[stage]
        for part in self.part_training.frozen:
            part.requires_grad_(False).eval()
        self._batch_number = 0

    def _embedding_width(self) -> int:
        head = self.classifier.head
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"the restorer works on embeddings before one linear layer, but the head of "
                f"{type(self.classifier).__name__} is {type(head).__name__}: choose another network, or keep to "
                "--model.stage denoise"
            )
        return head.in_features

    # what attackers and evaluations see

    def purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Denoised images ``(N, C, H, W)``; they may leave [0, 1]."""
        return self._denoised(images, self.parts)

    def classify(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of denoised images, from restored features."""
        return self._classified(images, self.parts)

    def answering(self, parts: Parts) -> Callable[[Tensor, SampleRNG], Tensor]:
        """From images to logits ``(N, K)`` as if the defense were deployed with these parts.

        Raises:
            ValueError: If there are no such parts.
        """
        require_choice("parts", parts, Parts)
        return lambda images, rng: self._classified(self._denoised(images, parts), parts)

    def _denoised(self, images: Tensor, parts: Parts) -> Tensor:
        if parts == "target":
            return images
        denoised: Tensor = self.denoiser(images)
        return denoised

    def _classified(self, images: Tensor, parts: Parts) -> Tensor:
        features = self.embed(images)
        if parts == "all" and self.restorer is not None:
            features = self.restorer(features)
        logits: Tensor = self.classifier.head(features)
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Features of the target for images ``(N, C, H, W)``, as they are."""
        features: Tensor = self.classifier.features(self.classifier.normalize(images))
        return features

    def adaptive_surrogates(self) -> Mapping[str, SurrogateFactory]:
        """The full gradient, and that without the restorer, or with it where it is not deployed."""
        found: dict[str, SurrogateFactory] = {"full_gradient": FullGradient}
        if self.restorer is not None and self.parts == "all":
            found["without_restorer"] = partial(Transfer, parts="denoiser")
        if self.restorer is not None and self.parts == "denoiser":
            found["with_restorer"] = partial(Transfer, parts="all")
        return found

    def in_use(self) -> dict[str, Any]:
        """The parts that answer."""
        deployed = ["target"]
        if self.parts != "target":
            deployed.append("denoiser")
        if self.parts == "all" and self.restorer is not None:
            deployed.append("restorer")
        return {"deployed": deployed}

    # training

    def loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """That of the part in training."""
        return self.part_training.loss(batch, rng, self._batch_rng())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Keeps the number of the batch, which all processes share."""
        super().on_train_batch_start(batch, batch_idx)
        self._batch_number = batch_idx

    def _batch_rng(self) -> SampleRNG:
        """One row for the batch, whatever part of it this process has."""
        number = torch.tensor([self._batch_number], device=self.device)
        return SampleRNG.for_images(number, global_seed(), "train_batches", self.current_epoch)

    def on_fit_start(self) -> None:
        """Makes or reads what does not change while a part is trained."""
        self.part_training.begin(self.trainer)

    def on_validation_epoch_end(self) -> None:
        """Logs what all processes know of held-out images."""
        found = self.part_training.validate()
        self.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=True)

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.part_training.frozen:
            part.eval()
        return self

    # weights

    def setup(self, stage: str) -> None:
        """Loads the target of ``weights`` and the trained parts of ``parts_weights`` or else of ``weights``.

        Raises:
            CheckpointError: If a file cannot be read, or lacks what is frozen or, in a test, anything, or has it in
                another form; or if, in a test, both files have trained parts, or
                one has a restorer that would be left out unasked.
            ValueError: If a ``fit`` is asked to train less than all, or behind an untrained denoiser.
        """
        if stage == "fit":
            self._check_fit()
        if not self._weights_loaded:
            load_networks(self, self.weights, self.parts_weights, self.parts, self.hparams, fit=stage == "fit")
            self._weights_loaded = True
        super().setup(stage)

    def _check_fit(self) -> None:
        if self.parts != "all":
            raise ValueError(f"parts: {self.parts} is for tests: leave it out of fit, which trains what stage says")
        if self.stage == "restore" and self.weights is None and self.parts_weights is None:
            raise ValueError(
                "stage: restore needs a trained denoiser: give the checkpoint of a run with stage: denoise as "
                "--model.weights"
            )
        if self.weights is None:
            rank_zero_warn("the target stays as its network starts, which is untrained unless it has published weights")
