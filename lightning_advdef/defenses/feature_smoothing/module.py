"""FeatureSmoothingModule: flat early features in training, Active Defense at test time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_advdef.attacks import SurrogateFactory
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.data import DataModule
from lightning_advdef.defenses.base import DefenseModule
from lightning_advdef.defenses.calibration import chosen, stated, validation_batches
from lightning_advdef.defenses.feature_smoothing.active_defense import ActiveDefense
from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from lightning_advdef.defenses.feature_smoothing.figures import feature_maps
from lightning_advdef.defenses.feature_smoothing.surrogates import attackers
from lightning_advdef.models import FeatureTap, NetworkFactory
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

# the paper's delta lies 8% under the mean feature loss of clean images on CIFAR-10 and 9% on CIFAR-100
_DELTA_FACTOR = 0.92
# classes of which calibration keeps an image, as targets in feature space
_ANCHORS = 10
_SHOWN = 2
_SETTINGS = ("noise", "step_size", "delta", "max_iter", "clip", "noise_seed", "fixed_shape")


class FeatureSmoothingModule(DefenseModule):
    """Feature smoothing loss and Active Defense.

    Source: "Can standard training with clean images outperform adversarial one in robust accuracy?" (ICLR 2022
    submission). Training adds to the cross-entropy a hinge on the feature loss of a layer (Eq. 2). At test time noise
    is added to each image, and gradient descent on the same loss smooths it before it is classified (Algorithm 1);
    ``votes`` is the paper's outer loop. Training and validation know nothing of the test-time part.

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        tap: Layer whose features count (l); any name that torchvision's feature extraction knows.
        weight: Weight of the hinge.
        train_delta: Where the hinge ends (delta in Eq. 2).
        hinge: Whether each image's feature loss is cut there, or the mean of the batch.
        noise: Half width of the uniform noise of Active Defense, in pixel units (sigma).
        step_size: Its factor on the gradient (beta); the published value belongs to WRN-28-10.
        delta: Feature loss at which an image is smooth enough; None for the value that calibration found, which
            ``weights`` bring only if it was found for this ``tap``.
        max_iter: Most steps of an image; 0 leaves the noise alone.
        clip: Keep smoothed pixels in [0, 1].
        noise_seed: Draw the noise once, from this seed, for all images and calls: a deterministic defense whose noise
            the attacker knows. None for fresh noise.
        kwargs: See :class:`DefenseModule`.

    Raises:
        ValueError: If a number is out of range or the network has no such layer.
    """

    calibrated_for: ClassVar = {"calibrated_delta": ("tap",)}
    calibrated_delta: Tensor
    calibrated_anchors: Tensor

    def __init__(
        self,
        network: NetworkFactory,
        tap: str = "features.group0",
        weight: float = 1.0,
        train_delta: float = 0.02,
        hinge: Literal["image", "batch"] = "image",
        noise: float = 0.075,
        step_size: float = 80.0,
        delta: float | None = None,
        max_iter: int = 1000,
        clip: bool = False,
        noise_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if min(weight, train_delta, noise, step_size, max_iter, delta or 0) < 0:
            raise ValueError(
                "weight, train_delta, noise, step_size, delta and max_iter must not be negative, got "
                f"{weight}, {train_delta}, {noise}, {step_size}, {delta}, {max_iter}"
            )
        if noise_seed is not None and self.votes > 1:
            raise ValueError(f"with noise_seed all votes are the same run: leave out votes, got {self.votes}")
        self.tap = FeatureTap(self.classifier, tap)
        self.weight, self.train_delta, self.hinge = weight, train_delta, hinge
        self.noise, self.step_size, self.max_iter = noise, step_size, max_iter
        self.clip, self.noise_seed = clip, noise_seed
        self.given_delta = delta
        self.stochastic = noise > 0 and noise_seed is None
        self.val_feature_loss = MeanMetric()
        self._first_of_class: dict[int, tuple[float, Tensor]] = {}
        self.register_buffer("calibrated_delta", torch.tensor(torch.nan))
        anchors = min(_ANCHORS, self.spec.classes)
        self.register_buffer("calibrated_anchors", torch.full((anchors, *self.spec.shape), torch.nan))

    @property
    def delta(self) -> float:
        """The feature loss at which an image is smooth enough.

        Raises:
            ValueError: If none was given and none was calibrated.
        """
        return chosen("Active Defense", "delta", self.given_delta, self.calibrated_delta)

    def in_use(self) -> dict[str, Any]:
        """Delta and where it is from."""
        return stated("delta", self.delta, self.given_delta)

    @property
    def purifier(self) -> ActiveDefense:
        """Active Defense as it is set."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return ActiveDefense(self.tap.features, **settings)

    @property
    def untraceable(self) -> str | None:
        """See the base class; without noise there is still the loop."""
        return super().untraceable or "Active Defense takes gradient steps until each image is smooth"

    def purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Smoothed images (Algorithm 1); the layers after the tap do not run."""
        with attack_mode(self.classifier):
            purified = self.purifier(images, rng)
        self.last_steps, self.last_capped = purified.steps, purified.capped
        return purified.images

    def adaptive_surrogates(self) -> Mapping[str, SurrogateFactory]:
        """Attackers who know Active Defense: see the README of this folder."""
        return attackers()

    def figures(self, clean: Tensor, adversarial: Tensor) -> Mapping[str, Figure]:
        """Feature maps before and after Active Defense (Fig. 4), if the features are maps."""
        with attack_mode(self.classifier):
            if self.tap.features(clean[:1]).dim() != 4:
                return {}
            return {"feature_maps": feature_maps(self.purifier, self.classifier, clean[:_SHOWN], adversarial[:_SHOWN])}

    def loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """Eq. 2, from one forward pass."""
        features, logits = self.tap.features_and_logits(batch.images)
        cross_entropy = F.cross_entropy(logits, batch.labels)
        roughness = feature_loss(features)
        hinged = (roughness if self.hinge == "image" else roughness.mean()).clamp(min=self.train_delta).mean()
        return {
            "loss": cross_entropy + self.weight * hinged,
            "cross_entropy": cross_entropy,
            "feature_loss": roughness.mean(),
        }

    def validation_logits(self, batch: Batch) -> Tensor:
        """Those of the classifier; the feature loss and examples of the classes are noted on the way."""
        features, logits = self.tap.features_and_logits(batch.images)
        self._note(batch, features)
        self.log("val/feature_loss", self.val_feature_loss, batch_size=len(batch.images))
        return logits

    def on_validation_epoch_end(self) -> None:
        """Calibrates."""
        self.calibrated_delta.fill_(_DELTA_FACTOR * self.val_feature_loss.compute())
        for label, (_, image) in self._first_of_all_processes().items():
            self.calibrated_anchors[label] = image
        self._first_of_class.clear()

    def _note(self, batch: Batch, features: Tensor) -> None:
        self.val_feature_loss.update(feature_loss(features))
        for index, label, image in zip(batch.indices.tolist(), batch.labels.tolist(), batch.images, strict=True):
            if label < len(self.calibrated_anchors) and index < self._first_of_class.get(label, (math.inf, image))[0]:
                self._first_of_class[label] = (index, image)

    def _first_of_all_processes(self) -> dict[int, tuple[float, Tensor]]:
        """The image of smallest index of each class, the same in every process."""
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return self._first_of_class
        own = {label: (index, image.cpu()) for label, (index, image) in self._first_of_class.items()}
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
        labels = {label for part in parts for label in part}
        return {label: min((part[label] for part in parts if label in part), key=lambda e: e[0]) for label in labels}

    def calibrate(self, data: DataModule) -> dict[str, float]:
        """``delta``: 0.92 times the mean feature loss of the clean images of the validation split.

        Raises:
            ValueError: If there is no validation split.
        """
        self.val_feature_loss.reset()
        with attack_mode(self.classifier), torch.no_grad():
            for batch in validation_batches(data, self.device):
                self._note(batch, self.tap.features(batch.images))
        self.on_validation_epoch_end()
        found = {"delta": float(self.calibrated_delta)}
        return found if self.given_delta is None else found | {"delta in the settings, which wins": self.given_delta}
