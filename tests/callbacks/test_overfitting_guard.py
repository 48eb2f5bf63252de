"""The guard against catastrophic overfitting."""

import functools

import pytest
import torch

from lightning_advdef.callbacks import OverfittingGuard
from lightning_advdef.checkpoints import read_checkpoint
from lightning_advdef.defenses import StandardModule
from lightning_advdef.models import MLP
from tests.callbacks.test_robustness import small_digits, trainer_of


class Stream(StandardModule):
    """Logs given accuracies, one pair per epoch."""

    def __init__(self, pgd, fgsm):
        super().__init__(functools.partial(MLP, hidden=[4]), spec="digits")
        self.streams = {"pgd10": pgd, "fgsm": fgsm}
        self.heads = []

    def on_validation_epoch_end(self):
        for name, values in self.streams.items():
            self.log(f"val/robust_accuracy/{name}", values[self.current_epoch])
        if not self.trainer.sanity_checking:
            self.heads.append(self.classifier.head.weight.detach().clone())


def watch(folder, pgd, fgsm, **settings):
    """Fits on streams of accuracies."""
    module, guard = Stream(pgd, fgsm), OverfittingGuard(**settings)
    trainer = trainer_of(folder, guard, max_epochs=len(pgd), enable_checkpointing=True)
    trainer.fit(module, datamodule=small_digits())
    return module, guard, trainer


COLLAPSE = {"pgd": [0.3, 0.4, 0.1, 0.0], "fgsm": [0.5, 0.6, 0.9, 0.9]}


def kept_head(folder):
    return read_checkpoint(folder / "checkpoints" / "last_good.ckpt")["state_dict"]["classifier.head.weight"]


def test_a_collapse_stops_the_training_and_is_explained(tmp_path, capsys):
    module, _, _ = watch(tmp_path, **COLLAPSE)
    assert len(module.heads) == 3
    said = capsys.readouterr().out
    assert said.count("catastrophic overfitting in epoch 2: pgd10 accuracy fell from 40.0% to 10.0%") == 1
    assert "fgsm has 90.0%" in said
    assert f"the last good weights, of 40.0%, are in {tmp_path / 'checkpoints' / 'last_good.ckpt'}" in said


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_the_checkpoint_before_the_collapse_is_kept(tmp_path, action):
    module, _, _ = watch(tmp_path, **COLLAPSE, action=action)
    assert torch.equal(kept_head(tmp_path), module.heads[1])


def test_a_warning_lets_the_training_go_on_and_comes_once(tmp_path, capsys):
    module, _, _ = watch(tmp_path, **COLLAPSE, action="warn")
    assert len(module.heads) == 4
    assert capsys.readouterr().out.count("catastrophic overfitting") == 1


def test_a_collapse_in_two_halves_is_noticed(tmp_path):
    _, guard, _ = watch(tmp_path, [0.5, 0.35, 0.25], [0.5, 0.6, 0.7])
    assert guard.collapsed


@pytest.mark.parametrize(
    ("pgd", "fgsm"),
    [([0.4, 0.3, 0.25], [0.5, 0.6, 0.7]), ([0.4, 0.1, 0.1], [0.6, 0.2, 0.2]), ([0.1, 0.2, 0.3], [0.9, 0.9, 0.9])],
    ids=["a slow fall", "both fall", "a gap that was always there"],
)
def test_nothing_is_said_of(tmp_path, capsys, pgd, fgsm):
    module, guard, _ = watch(tmp_path, pgd, fgsm)
    assert len(module.heads) == 3
    assert not guard.collapsed
    assert "catastrophic" not in capsys.readouterr().out


def test_an_epoch_halfway_down_is_not_kept(tmp_path, capsys):
    module, _, _ = watch(tmp_path, [0.44, 0.45, 0.27, 0.1], [0.5, 0.5, 0.6, 0.9])
    assert torch.equal(kept_head(tmp_path), module.heads[1])
    assert "the last good weights, of 45.0%, are in" in capsys.readouterr().out


def test_an_epoch_near_the_best_is_kept(tmp_path, capsys):
    module, _, _ = watch(tmp_path, [0.45, 0.41, 0.1], [0.5, 0.6, 0.9])
    assert torch.equal(kept_head(tmp_path), module.heads[1])
    assert "of 41.0%, are in" in capsys.readouterr().out


def test_after_a_fall_of_both_the_good_checkpoint_stays(tmp_path):
    module, _, _ = watch(tmp_path, [0.4, 0.1, 0.1], [0.6, 0.2, 0.2])
    assert torch.equal(kept_head(tmp_path), module.heads[0])


def test_a_resumed_training_remembers_the_best(tmp_path):
    _, _, trainer = watch(tmp_path, [0.3, 0.5], [0.6, 0.6])
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    guard = OverfittingGuard()
    again = trainer_of(tmp_path, guard, max_epochs=3)
    again.fit(Stream([0.3, 0.5, 0.25], [0.6] * 3), datamodule=small_digits(), ckpt_path=tmp_path / "two.ckpt")
    assert guard.collapsed


def test_accuracies_that_nothing_logs_are_an_error(tmp_path):
    trainer = trainer_of(tmp_path, OverfittingGuard(), max_epochs=1)
    with pytest.raises(ValueError, match="OverfittingGuard watches val/robust_accuracy/pgd10, which nothing logs"):
        trainer.fit(StandardModule(MLP, spec="digits"), datamodule=small_digits())


def test_an_impossible_fall_is_refused():
    with pytest.raises(ValueError, match=r"fall must be in \(0, 1\), got 20"):
        OverfittingGuard(fall=20)
