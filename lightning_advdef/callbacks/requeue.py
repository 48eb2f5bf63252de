"""SLURM's signal, answered between two steps of a training."""

from __future__ import annotations

import math
import signal
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class RequeueBetweenSteps(Callback):
    """Has Lightning answer SLURM's signal to requeue when a training step is over, in all processes after the same one.

    Lightning saves a checkpoint wherever the signal finds it, perhaps halfway through an optimizer's step, and other
    processes perhaps a step later. Without SLURM this does nothing; under SLURM the processes ask each other after
    every step, which is one all-reduce of a number.

    A step that ends an epoch or has a validation behind it is answered by the next one, since Lightning would take the
    validation, and the epoch with its scheduler, for done. Where every step is so, the end of an epoch answers, and the
    last epoch is finished. So the signal must come earlier than the end of the job by the time of a validation and two
    steps, or of an epoch in that case (``sbatch --signal=USR1@SECONDS``). Validations at intervals of time are not
    foreseen: one that was due may be left out.
    """

    def __init__(self) -> None:
        self._lightning: Any = None
        self._asked = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the place of Lightning's handler, which puts back those of before at the end."""
        self._lightning, self._asked = signal.getsignal(signal.SIGUSR1), False
        if callable(self._lightning):
            signal.signal(signal.SIGUSR1, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Answers, unless the epoch ends here or a validation follows."""
        loop = trainer.fit_loop.epoch_loop
        # Lightning counts over all epochs where none is to end with a validation
        steps = 1 + (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx)
        if not loop.batch_progress.is_last_batch and steps % (trainer.val_check_batch or math.inf) != 0:
            self._answer(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answers where every step is the last of an epoch, or validated."""
        every_step = 1 in (trainer.num_training_batches, trainer.val_check_batch)
        if every_step and trainer.current_epoch + 1 != trainer.max_epochs:
            self._answer(trainer)

    def _answer(self, trainer: Trainer) -> None:
        """Lets Lightning save and requeue, once any process was asked to."""
        if callable(self._lightning) and trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            self._asked = False
            self._lightning(signal.SIGUSR1, None)
