"""One line per epoch."""

import re
import time

import pytest
import torch
from pytorch_lightning import Callback

from lightning_advdef.attacks import FGSM, PGD
from lightning_advdef.callbacks import EpochLine, RobustnessEvaluation
from lightning_advdef.evaluation import Scenario
from tests.callbacks.test_robustness import small_defense, small_digits, trainer_of
from tests.test_cli import TRAINING, scalars

SCENARIOS = [Scenario("fgsm", FGSM(0.1)), Scenario("pgd", PGD(0.1, steps=2))]
LINE = re.compile(r"^epoch (\d+)  loss ([\d.]+)  clean ([\d.]+)%(.*)  ([\d.]+) s\s*$", re.MULTILINE)


class Losses(Callback):
    """What each step returned."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.found.append(outputs["loss"])


class Slow(Callback):
    """Waits in every batch of training and of validation."""

    def __init__(self, training, validation):
        self.training = training
        self.validation = validation

    def on_train_batch_end(self, *_):
        time.sleep(self.training)

    def on_validation_batch_end(self, *_):
        time.sleep(self.validation)


def test_the_line_has_the_mean_loss_and_the_accuracies(tmp_path, capsys):
    losses = Losses()
    evaluation = RobustnessEvaluation(SCENARIOS, every_n_epochs=1)
    trainer = trainer_of(tmp_path, EpochLine(), losses, evaluation, max_epochs=1)
    trainer.fit(small_defense(), datamodule=small_digits())
    (found,) = LINE.findall(capsys.readouterr().out)
    metrics = trainer.callback_metrics
    assert found[1] == f"{torch.stack(losses.found).mean():.3f}"
    assert found[2] == f"{100 * metrics['val/clean_accuracy']:.1f}"
    shown = "".join(f"  {name} {100 * metrics[f'val/robust_accuracy/{name}']:.1f}%" for name in ("fgsm", "pgd"))
    assert found[3] == shown


def test_an_epoch_without_attacks_shows_none(tmp_path, capsys):
    evaluation = RobustnessEvaluation(SCENARIOS, every_n_epochs=2)
    trainer_of(tmp_path, EpochLine(), evaluation, max_epochs=3).fit(small_defense(), datamodule=small_digits())
    lines = LINE.findall(capsys.readouterr().out)
    assert [(line[0], "pgd" in line[3]) for line in lines] == [("0", False), ("1", True), ("2", False)]


def test_seconds_are_those_of_the_training_batches(tmp_path):
    slow = Slow(training=0.05, validation=0.5)
    trainer = trainer_of(tmp_path, EpochLine(), slow, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(small_defense(), datamodule=small_digits())
    assert 4 * 0.05 < trainer.callback_metrics["train/seconds_per_epoch"] < 2 * 0.5


@pytest.mark.parametrize("bar", ["true", "false"])
def test_the_command_line_prints_one_line_per_epoch(advdef, capsys, bar):
    folder = advdef.digits("fit", *TRAINING, f"--trainer.enable_progress_bar={bar}")
    assert [line[0] for line in LINE.findall(capsys.readouterr().out)] == ["0", "1", "2"]
    assert scalars(folder)["train/seconds_per_epoch"] > 0
