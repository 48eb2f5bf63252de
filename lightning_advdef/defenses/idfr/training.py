"""What the trainings of the denoiser and of the restorer have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from pytorch_lightning import Trainer
from torch import Tensor, nn

from lightning_advdef.defenses.idfr.adversaries import Adversaries, Recipe
from lightning_advdef.models import Classifier, Denoiser, FeatureRestorer
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch


class Networks(Protocol):
    """The networks of an ``IDFRModule``."""

    classifier: Classifier
    denoiser: Denoiser
    restorer: FeatureRestorer | None

    def embed(self, images: Tensor) -> Tensor:
        """Features of the target for images ``(N, C, H, W)``."""


class PartTraining(ABC):
    """How one part is trained while the others stay as they are.

    Args:
        networks: All parts.
        recipe: Of the adversarial training images.
    """

    def __init__(self, networks: Networks, recipe: Recipe) -> None:
        self.networks, self.recipe = networks, recipe
        self.adversaries: Adversaries | None = None

    @property
    @abstractmethod
    def frozen(self) -> list[nn.Module]:
        """The networks that stay, in eval mode."""

    def begin(self, trainer: Trainer) -> None:
        """Makes ready for the data of a ``fit``; what an earlier one left may be of other data."""
        self.adversaries = self.recipe.on(self.networks.classifier, trainer)

    def validate(self) -> dict[str, Tensor]:
        """What is to be logged of held-out images beside the clean accuracy of the whole; nothing here."""
        return {}

    @abstractmethod
    def loss(self, batch: Batch, rng: SampleRNG, common: SampleRNG) -> dict[str, Tensor]:
        """Terms of the training loss; ``loss`` is the one that is minimised.

        Args:
            batch: Clean images and their labels.
            rng: Of the images.
            common: Of one row, the same for all parts of a batch that several processes share.
        """
