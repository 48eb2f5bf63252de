"""IDFRModule: a denoiser before, and a restorer of features within, a classifier that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_advdef.attacks import FGSM, Attack, FullGradient, SurrogateFactory
from lightning_advdef.attacks.base import attack_mode, refuse_parts
from lightning_advdef.checkpoints import load_weights
from lightning_advdef.defenses.base import DefenseModule, _global_seed
from lightning_advdef.defenses.fixed_examples import Leaves, load_or_make, training_images
from lightning_advdef.defenses.idfr.adversaries import Adversaries, require_budgets
from lightning_advdef.defenses.idfr.embeddings import EmbeddingPools, Pairing, pools_of
from lightning_advdef.defenses.idfr.loading import load_parts, require_no_restorer, require_target_alone
from lightning_advdef.defenses.idfr.surrogates import Parts, WithParts
from lightning_advdef.models import DenoiserFactory, FeatureRestorer, InputDenoiser, NetworkFactory, RestorerFactory
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Eps

Stage = Literal["denoise", "restore"]
DenoiserLoss = Literal["ce", "feature_l1"]

_CHOICES = {"denoiser_loss": DenoiserLoss, "leaves": Leaves, "pairing": Pairing}


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

    def __init__(
        self,
        network: NetworkFactory,
        stage: Stage = "denoise",
        parts: Parts = "all",
        denoiser: DenoiserFactory = InputDenoiser,
        restorer: RestorerFactory = FeatureRestorer,
        denoiser_loss: DenoiserLoss = "ce",
        attacks: list[Attack] | None = None,
        largest_eps: Eps | None = None,
        leaves: Leaves = "prediction",
        source: SurrogateFactory = FullGradient,
        cache: str | None = None,
        noise: Eps = Eps("8/255"),  # noqa: B008 - a number
        noise_rounds: int = 2,
        pairing: Pairing = "same_class",
        parts_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.attacks = [FGSM(Eps("8/255"))] if attacks is None else attacks
        require_budgets(self.attacks, largest_eps)
        for attack in self.attacks:
            refuse_parts(attack, "IDFR")
        for name, choice in (("denoiser_loss", denoiser_loss), ("leaves", leaves), ("pairing", pairing)):
            if choice not in get_args(_CHOICES[name]):
                raise ValueError(f"{name} must be {' or '.join(get_args(_CHOICES[name]))}, got {choice!r}")
        if parts not in get_args(Parts) or stage not in get_args(Stage) or noise < 0 or noise_rounds < 0:
            raise ValueError(
                "IDFR needs stage denoise or restore, parts target, denoiser or all, and noise and noise_rounds of at "
                f"least 0, got {stage!r}, {parts!r}, {noise} and {noise_rounds}"
            )
        if cache is not None and largest_eps is not None:
            raise ValueError("cache keeps images of fixed budgets: list attacks with their eps, without largest_eps")
        self.stage, self.parts, self.denoiser_loss, self.pairing = stage, parts, denoiser_loss, pairing
        self.largest_eps, self.leaves, self.source, self.cache = largest_eps, leaves, source, cache
        self.noise, self.noise_rounds, self.parts_weights = noise, noise_rounds, parts_weights
        self.denoiser: InputDenoiser = denoiser(self.spec)
        self.restorer = restorer(self._embedding_width()) if stage == "restore" else None
        for part in self._frozen:
            part.requires_grad_(False).eval()
        self._pools: EmbeddingPools | None = None
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

    @property
    def _frozen(self) -> list[nn.Module]:
        return [self.classifier] if self.stage == "denoise" else [self.classifier, self.denoiser]

    # what attackers and evaluations see

    def purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Denoised images ``(N, C, H, W)``; they may leave [0, 1]."""
        return self._denoised(images, self.parts)

    def classify(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of denoised images, from restored features."""
        return self._classified(images, self.parts)

    def answer(self, images: Tensor, parts: Parts) -> Tensor:
        """Logits ``(N, K)`` of images as if the defense were deployed with these parts."""
        return self._classified(self._denoised(images, parts), parts)

    def _denoised(self, images: Tensor, parts: Parts) -> Tensor:
        if parts == "target":
            return images
        denoised: Tensor = self.denoiser(images)
        return denoised

    def _classified(self, images: Tensor, parts: Parts) -> Tensor:
        features = self._features(images)
        if parts == "all" and self.restorer is not None:
            features = self.restorer(features)
        logits: Tensor = self.classifier.head(features)
        return logits

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.classifier.features(self.classifier.normalize(images))
        return features

    def adaptive_surrogates(self) -> Mapping[str, SurrogateFactory]:
        """The full gradient, and that without the restorer, or with it where it is not deployed."""
        found: dict[str, SurrogateFactory] = {"full_gradient": FullGradient}
        if self.restorer is not None and self.parts == "all":
            found["without_restorer"] = partial(WithParts, parts="denoiser")
        if self.restorer is not None and self.parts == "denoiser":
            found["with_restorer"] = partial(WithParts, parts="all")
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
        return self._denoiser_loss(batch, rng) if self.restorer is None else self._restorer_loss(batch, rng)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Keeps the number of the batch, which all processes share."""
        self._batch_number = batch_idx

    def _batch_rng(self) -> SampleRNG:
        """One row for the batch, whatever part of it this process has."""
        number = torch.tensor([self._batch_number], device=self.device)
        return SampleRNG.for_images(number, _global_seed(), "train_batches", self.current_epoch)

    def _denoiser_loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """Eq. 3 on an adversarial and some noisy copies of each image; one pass of all."""
        copies = [self._adversaries.draw(batch, rng.stream("adversary"), self._batch_rng())]
        copies += [self._noisy(batch.images, rng.stream("noise", round_)) for round_ in range(self.noise_rounds)]
        losses = self._distance(self.denoiser(torch.cat(copies)), batch).view(len(copies), -1)
        adversarial = losses[0].mean()
        if self.noise_rounds == 0:
            return {"loss": adversarial}
        noisy = losses[1:].mean()
        return {"loss": (adversarial + noisy) / 2, "adversarial_loss": adversarial, "noisy_loss": noisy}

    def _distance(self, denoised: Tensor, batch: Batch) -> Tensor:
        """Of each copy of the batch's images from what the target should see, shape ``(copies * N,)``."""
        copies = len(denoised) // len(batch.labels)
        if self.denoiser_loss == "ce":
            return F.cross_entropy(self.classifier(denoised), batch.labels.repeat(copies), reduction="none")
        with torch.no_grad():
            clean = self._features(batch.images).flatten(1)
        return (self._features(denoised).flatten(1) - clean.repeat(copies, 1)).abs().mean(dim=1)

    def _noisy(self, images: Tensor, rng: SampleRNG) -> Tensor:
        return (images + self.noise * rng.normal(*images.shape[1:])).clamp(0, 1)

    def _restorer_loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """Eq. 6 on one pair of embeddings for each label of the batch, whose images do not count."""
        assert self._pools is not None
        assert self.restorer is not None
        restored = self.restorer(self._pools.mixtures(batch.labels, rng, self.pairing))
        return {"loss": F.cross_entropy(self.classifier.head(restored), batch.labels)}

    @cached_property
    def _adversaries(self) -> Adversaries:
        surrogate = self.source(self.classifier)
        sets = None
        if self.cache is not None:
            sets = [
                load_or_make(self.trainer, surrogate, attack, _global_seed(), self.leaves, self.cache)
                for attack in self.attacks
            ]
        return Adversaries(surrogate, self.attacks, self.largest_eps, self.leaves, sets)

    def on_fit_start(self) -> None:
        """Makes or reads the fixed adversarial images, and embeds all training images for the restorer."""
        self.__dict__.pop("_adversaries", None)  # of an earlier fit, maybe on other data
        if self.stage == "restore":
            self._pools = self._embed_training_images()
        else:
            _ = self._adversaries

    def _embed_training_images(self) -> EmbeddingPools:
        """Clean images and the adversarial ones of every attack, behind the denoiser."""

        def versions(batch: Batch) -> list[Tensor]:
            rng = SampleRNG.for_images(batch.indices, _global_seed(), "train").stream("adversary")
            attacked = (self._adversaries.of(number, batch, rng, rng[:1]) for number in range(len(self.attacks)))
            return [batch.images, *attacked]

        def embed(images: Tensor) -> tuple[Tensor, Tensor]:
            with attack_mode(self), torch.no_grad():
                features = self._features(self.denoiser(images))
                return features, self.classifier.head(features)

        return pools_of(training_images(self.trainer), versions, embed, self.device)

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
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
            self._load(stage)
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

    def _load(self, stage: str) -> None:
        if stage != "fit" and self.weights is not None and self.parts_weights is not None:
            require_target_alone(self.weights)
        if self.weights is not None:
            load_weights(nn.ModuleDict({"classifier": self.classifier}), self.weights, complete=True)
        trained: dict[str, nn.Module] = {}
        if stage != "fit" or self.stage == "restore":
            trained["denoiser"] = self.denoiser
        if stage != "fit" and self.restorer is not None:
            trained["restorer"] = self.restorer
        path = self.parts_weights or self.weights
        if stage != "fit" and path is not None and self.restorer is None and self.parts == "all":
            require_no_restorer(path)
        if path is not None:
            load_parts(trained, path, self.hparams)
        self._weights_loaded = True
