"""One line per epoch."""

import re

import pytest
import torch
from pytorch_lightning import Callback

from lightning_advdef.attacks import FGSM, PGD
from lightning_advdef.callbacks import EpochLine, RobustnessEvaluation, epoch_line
from lightning_advdef.defenses import StandardModule
from lightning_advdef.evaluation import Scenario
from lightning_advdef.models import MLP
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


class Clock:
    """A clock that stands still unless somebody waits."""

    def __init__(self):
        self.now = 0.0

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(epoch_line, "device_time", lambda device: clock.now)
    return clock


class Slow(Callback):
    """Waits in every batch of training and of validation, and at the end of validation, as one that saves does."""

    def __init__(self, clock, training, validation=0.0, saving=0.0):
        self.clock = clock
        self.training = training
        self.validation = validation
        self.saving = saving

    def on_train_batch_end(self, *_):
        self.clock.wait(self.training)

    def on_validation_batch_end(self, *_):
        self.clock.wait(self.validation)

    def on_validation_end(self, *_):
        self.clock.wait(self.saving)


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


def seconds_of(folder, slow, **options):
    trainer = trainer_of(folder, EpochLine(), slow, max_epochs=1, num_sanity_val_steps=0, **options)
    trainer.fit(small_defense(), datamodule=small_digits())
    return float(trainer.callback_metrics["train/seconds_per_epoch"])


def test_seconds_are_those_of_the_training_batches(tmp_path, clock):
    assert seconds_of(tmp_path, Slow(clock, training=0.5, validation=5.0)) == 4 * 0.5


def test_seconds_are_without_checkpoints(tmp_path, clock):
    assert seconds_of(tmp_path, Slow(clock, training=0.0, saving=1.0)) == 0


def test_seconds_go_on_after_a_validation_in_the_middle(tmp_path, clock):
    assert seconds_of(tmp_path, Slow(clock, training=0.5), val_check_interval=0.5) == 4 * 0.5


class Two(StandardModule):
    """Of two players, of which one is the classifier."""

    def loss(self, batch, rng):
        return super().loss(batch, rng) | {"classifier_loss": torch.tensor(7.0)}


def test_of_two_players_the_loss_is_the_classifiers(tmp_path, capsys):
    module = Two(MLP, spec="digits")
    trainer_of(tmp_path, EpochLine(), max_epochs=1).fit(module, datamodule=small_digits())
    (found,) = LINE.findall(capsys.readouterr().out)
    assert found[1] == "7.000"


@pytest.mark.parametrize("bar", ["true", "false"])
def test_the_command_line_prints_one_line_per_epoch(advdef, capsys, bar):
    folder = advdef.digits("fit", *TRAINING, f"--trainer.enable_progress_bar={bar}")
    assert [line[0] for line in LINE.findall(capsys.readouterr().out)] == ["0", "1", "2"]
    assert scalars(folder)["train/seconds_per_epoch"] > 0
