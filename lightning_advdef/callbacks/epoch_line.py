"""EpochLine: how a training goes, one line per epoch."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_advdef.callbacks.robustness import robust_accuracies
from lightning_advdef.evaluation.estimate import device_time


class EpochLine(Callback):
    """Prints each epoch's mean loss, accuracies on the validation split and seconds of training.

    Of two players' losses it is the classifier's, ``train/classifier_loss``; otherwise ``train/loss``.
    Epochs count from 0, as in the names of checkpoints. The seconds, also logged as ``train/seconds_per_epoch``, are
    those of the training batches and their loading alone, without validation and checkpoints.
    """

    def __init__(self) -> None:
        self._clock = Stopwatch()
        self._losses: list[Tensor] = []
        self._accuracies: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._losses, self._accuracies = [], {}
        self._clock = Stopwatch()
        self._clock.start(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Notes the loss, without waiting for it."""
        logged = trainer.callback_metrics
        if "train/loss" in logged:
            self._losses.append(logged.get("train/classifier_loss", logged["train/loss"]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._clock.stop(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the accuracies; starts the clock again if batches are left, as others may save when none are."""
        if trainer.sanity_checking:
            return
        clean = trainer.callback_metrics.get("val/clean_accuracy")
        self._accuracies = {} if clean is None else {"clean": float(clean)}
        self._accuracies |= robust_accuracies(trainer)
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._clock.start(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the seconds and prints the line."""
        self._clock.stop(pl_module.device)
        pl_module.log("train/seconds_per_epoch", self._clock.seconds, sync_dist=True)
        parts = [f"epoch {trainer.current_epoch}"]
        if self._losses:
            loss = trainer.strategy.reduce(torch.stack(self._losses).mean(), reduce_op="mean")
            parts.append(f"loss {float(loss):.3f}")
        parts += [f"{name} {100 * accuracy:.1f}%" for name, accuracy in self._accuracies.items()]
        # around a progress bar where there is one, and on one process only
        pl_module.print("  ".join([*parts, f"{self._clock.seconds:.1f} s"]))


class Stopwatch:
    """Seconds between starts and stops, by when they happened on the device."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self, device: torch.device) -> None:
        """Goes on counting."""
        self._since = device_time(device)

    def stop(self, device: torch.device) -> None:
        """Stops counting, if it was."""
        if self._since is not None:
            self.seconds += device_time(device) - self._since
        self._since = None
