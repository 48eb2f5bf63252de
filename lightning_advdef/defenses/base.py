"""The contract of a defense: a classifier on [0, 1] pixels, written classifier after purify."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_advdef.attacks import SurrogateFactory
from lightning_advdef.checkpoints import load_weights, plain
from lightning_advdef.data import DataModule, get_spec
from lightning_advdef.metrics import IndexedAccuracy
from lightning_advdef.models import Classifier, NetworkFactory
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Purify


def global_seed() -> int:
    """What ``seed_everything`` set, 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


class DefenseModule(LightningModule):
    """Base of all defenses.

    A training-time method overrides ``loss``; a test-time method overrides ``purify``, and ``classify`` or ``deploy``
    where it needs more; not ``forward``, since attackers who replace the purifier call ``deploy``.

    Attributes:
        starts: Names of the settings that are files a training begins with, which what it saves replaces.
        calibrated_for: Of each buffer that ``calibrate`` fills, the settings that decide its value; the one in a
            checkpoint with others is not loaded.
        stochastic: Whether it draws random numbers at test time.
        fixed_shape: Set in strict mode: no image may leave the batch within the test-time part either.
        last_steps: Steps that an iterative test-time part took in its last call, int64, a row for each vote of each
            image in the order of the votes; None without such a part.
        last_capped: Which of them were cut off by the most steps allowed, bool.

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        spec: Data set by name, or ``CxHxWxK``; the command line fills it from the data.
        weights: Checkpoint whose weights are loaded before anything runs.
        optimizer: Made from the parameters that train.
        scheduler: Made from the optimizer; None for a constant learning rate.
        votes: Independent draws of a stochastic defense whose softmax outputs are averaged.
        channels_last: Keep all weights in that memory format. With bfloat16 it halves the time of a step of
            LeNet on a CPU, and it suits the tensor cores of a GPU; results change by rounding alone.
        scheduler_interval: Whether the scheduler counts epochs or minibatches.

    Raises:
        ValueError: If votes is below 1 or the network does not fit the data.
    """

    starts: ClassVar[tuple[str, ...]] = ("weights",)
    calibrated_for: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    stochastic = False
    fixed_shape = False
    last_steps: Tensor | None = None
    last_capped: Tensor | None = None

    def __init__(
        self,
        network: NetworkFactory,
        spec: str = "mnist",
        weights: str | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        scheduler: LRSchedulerCallable | None = None,
        votes: int = 1,
        channels_last: bool = False,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        if votes < 1:
            raise ValueError(f"votes must be at least 1, got {votes}: change --model.votes")
        self.save_hyperparameters(logger=False)
        self._keep_plain_hyperparameters()
        self.spec = get_spec(spec)
        self.classifier: Classifier = network(self.spec)
        self.weights = weights
        self._weights_loaded = False
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.scheduler_interval = scheduler_interval
        self.votes = votes
        self.channels_last = channels_last
        self.val_accuracy = IndexedAccuracy()
        self.test_accuracy = IndexedAccuracy()

    def _keep_plain_hyperparameters(self) -> None:
        """Stores arguments as a YAML would, so that checkpoints load with ``weights_only=True``."""
        settings = plain(dict(self.hparams))
        settings.setdefault("_class_path", f"{type(self).__module__}.{type(self).__qualname__}")
        self.hparams.clear()  # what has no plain description would be pickled into checkpoints
        self._set_hparams(settings)

    # what attackers and evaluations see

    @property
    def undefended(self) -> nn.Module:
        """The classifier without any test-time part."""
        return self.classifier

    def adaptive_surrogates(self) -> Mapping[str, SurrogateFactory]:
        """Surrogates of an attacker who knows this defense, by name."""
        return {}

    def purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """The test-time part; images ``(N, C, H, W)`` to images that may leave [0, 1]. The identity here."""
        return images

    def classify(self, images: Tensor) -> Tensor:
        """Logits of purified images."""
        logits: Tensor = self.classifier(images)
        return logits

    def forward(self, images: Tensor, rng: SampleRNG | None = None) -> Tensor:
        """Logits ``(N, K)`` of the deployed defense; with votes, the log of the mean softmax over the draws."""
        return self.deploy(images, SampleRNG.default(images) if rng is None else rng, self.purify)

    def deploy(self, images: Tensor, rng: SampleRNG, purify: Purify) -> Tensor:
        """The forward pass with ``purify`` in the place of the defense's own, as BPDA needs it."""
        if self.votes == 1:
            return self.classify(purify(images, rng))
        draws = SampleRNG.cat([rng.stream("vote", vote) for vote in range(self.votes)])
        repeated = images.repeat(self.votes, 1, 1, 1)
        # a graph whose batch may have any size has no length, but a shape
        logits = self.classify(purify(repeated, draws)).view(self.votes, images.shape[0], -1)
        return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(self.votes)

    @property
    def untraceable(self) -> str | None:
        """Why no graph of tensor operations can hold the deployed defense, after "since"; None if one can."""
        return "it draws random numbers for each image" if self.stochastic else None

    def calibrate(self, data: DataModule) -> dict[str, float]:
        """Values of this defense that depend on data and weights, by the name they have in a YAML.

        Raises:
            ValueError: If the defense has none.
        """
        raise ValueError(f"{type(self).__name__} has nothing to calibrate")

    def in_use(self) -> dict[str, Any]:
        """What the results state of the test-time part besides its settings, such as calibrated values."""
        return {}

    def figures(self, clean: Tensor, adversarial: Tensor) -> Mapping[str, Figure]:
        """What TensorBoard shows of this defense at work on images ``(N, C, H, W)``, also under attack, by name."""
        return {}

    # training, written once

    def loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """Terms of the training loss; ``loss`` is the one that is minimised."""
        return {"loss": F.cross_entropy(self.classifier(batch.images), batch.labels)}

    def setup(self, stage: str) -> None:
        """Loads ``weights`` once and lays them out, before the optimizer is made.

        Raises:
            CheckpointError: If the file cannot be read or does not fit.
        """
        # Lightning calls this again for a test after a fit, which must not bring back the starting weights
        if self.weights is not None and not self._weights_loaded:
            load_weights(self, self.weights, complete=stage != "fit")
            self._weights_loaded = True
        if self.channels_last:
            self.to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> Any:
        """The optimizer and the scheduler of the arguments."""
        optimizer: Optimizer = self.optimizer_factory(p for p in self.parameters() if p.requires_grad)
        if self.scheduler_factory is None:
            return optimizer
        scheduler = {"scheduler": self.scheduler_factory(optimizer), "interval": self.scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Ties torch's own random numbers (dropout) to the step, so that a run resumed within an epoch repeats them."""
        epoch = (global_seed() * 1009 + self.current_epoch) * 1009 + self.global_rank
        torch.manual_seed((epoch * 1_000_003 + batch_idx) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on the loss of the method."""
        rng = SampleRNG.for_images(batch.indices, global_seed(), "train", self.current_epoch)
        terms = self.loss(batch, rng)
        self._refuse_nan(terms)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(batch.images))
        return terms["loss"]

    def _refuse_nan(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in sorted(terms.items(), key=lambda term: term[0] == "loss"):
            if not value.isfinite().all():
                raise FloatingPointError(
                    f"the {name} term became {value.item()} at step {self.global_step} (epoch {self.current_epoch}): "
                    "lower the learning rate, or look at that term"
                )

    def validation_logits(self, batch: Batch) -> Tensor:
        """What validation looks at: the deployed defense, if training knows its test-time part."""
        logits: Tensor = self(batch.images, SampleRNG.for_images(batch.indices, split="val"))
        return logits

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy and cross-entropy on the validation split."""
        logits = self.validation_logits(batch)
        self.val_accuracy.update(logits.argmax(dim=1), batch.labels, batch.indices)
        self.log("val/clean_accuracy", self.val_accuracy, prog_bar=True, batch_size=len(batch.images))
        loss = F.cross_entropy(logits, batch.labels)
        self.log("val/loss", loss, sync_dist=True, batch_size=len(batch.images))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy of the deployed defense, unless an evaluation judges it; each image index counts once."""
        callbacks = getattr(self._trainer, "callbacks", [])  # there may be no Trainer
        if any(getattr(callback, "judges_test_images", False) for callback in callbacks):
            return
        logits = self(batch.images, SampleRNG.for_images(batch.indices))
        self.test_accuracy.update(logits.argmax(dim=1), batch.labels, batch.indices)
        self.log("test/clean_accuracy", self.test_accuracy, batch_size=len(batch.images))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Indices, logits and predicted classes of a batch."""
        logits = self(batch.images, SampleRNG.for_images(batch.indices))
        return {"indices": batch.indices, "logits": logits, "predictions": logits.argmax(dim=1)}
