"""A job that SLURM ends and starts again gives what an uninterrupted one gives."""

import json
import os
import signal

import pytest
from pytorch_lightning import Callback

from lightning_advdef.attacks import PGD
from lightning_advdef.checkpoints import read_checkpoint
from lightning_advdef.errors import CheckpointError, ResultFolderError
from tests.conftest import ROOT, result_of, scenario
from tests.test_cli import TRAINING, assert_same_training, losses

JOB = {"JOB_ID": 4711, "RESTART_COUNT": 0, "JOB_NAME": "train", "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1}
RANK = {"PROCID": 0, "LOCALID": 0, "NODEID": 0}
# one process needs no process group, which would stay with the other tests
CLUSTER = ["-c", ROOT / "configs" / "trainer" / "slurm.yaml", "--trainer.strategy=auto"]
NORMALISED = "--model.network.batch_norm=true"


class KilledError(Exception):
    """What a scheduler does some time after its signal."""


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """The environment of a job, and a ``scontrol`` that writes down what it was asked."""
    for name, value in (JOB | RANK).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    asked = tmp_path / "asked"
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return asked


class Signalled(Callback):
    """Gets the signal in the middle of a step, and is killed some steps later."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)
        if trainer.global_step == self.step + 3:
            raise KilledError


def signalled(step):
    callback = {"class_path": "tests.test_slurm.Signalled", "init_args": {"step": step}}
    return f"--trainer.callbacks+={json.dumps(callback)}"


def fit(advdef, *options, signalled_at=None, name="run"):
    interrupt = [] if signalled_at is None else [signalled(signalled_at)]
    return advdef.digits("fit", *CLUSTER, *TRAINING, NORMALISED, *interrupt, *options, name=name)


def requeued(monkeypatch, times=1):
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(times))


def test_a_requeued_fit_gives_the_weights_of_an_uninterrupted_one_and_overwrites_once(advdef, slurm, monkeypatch):
    fit(advdef, "--trainer.max_epochs=1")
    with pytest.raises(KilledError):
        fit(advdef, "--overwrite", signalled_at=11)
    assert slurm.read_text() == "requeue 4711\n"
    (saved,) = (advdef.runs / "run").glob("hpc_ckpt_*.ckpt")
    assert read_checkpoint(saved)["global_step"] == 12, "the step was finished first"
    requeued(monkeypatch)
    folder = fit(advdef, "--overwrite")
    assert_same_training(folder, fit(advdef, name="whole"))
    assert not list(folder.glob("hpc_ckpt_*.ckpt"))
    requeued(monkeypatch, times=2)
    assert_same_training(fit(advdef), folder)  # ends at once, so that the next line of a script has its turn


# one of eight steps as a share: whether 1 means one or all of them depends on the order in which types are tried
@pytest.mark.parametrize(
    ("epochs", "options", "signalled_at", "saved_at"),
    [
        (4, [], 15, 17),
        (8, ["--trainer.limit_train_batches=0.125"], 3, 4),
        (4, ["--trainer.val_check_interval=4"], 11, 13),
        (4, ["--trainer.val_check_interval=1"], 13, 16),
        (4, ["--trainer.val_check_interval=3", "--trainer.check_val_every_n_epoch=null"], 8, 10),
    ],
    ids=["of several", "of one", "in the middle", "every step", "counted over epochs"],
)
def test_a_signal_in_a_step_before_a_validation_costs_neither_it_nor_a_scheduler(
    advdef, slurm, monkeypatch, epochs, options, signalled_at, saved_at
):
    scheduler = ["--model.scheduler=StepLR", "--model.scheduler.step_size=1", "--model.scheduler.gamma=0.5"]
    options = [*scheduler, f"--trainer.max_epochs={epochs}", *options]
    with pytest.raises(KilledError):
        fit(advdef, *options, signalled_at=signalled_at)
    (saved,) = (advdef.runs / "run").glob("hpc_ckpt_*.ckpt")
    assert read_checkpoint(saved)["global_step"] == saved_at
    requeued(monkeypatch)
    folder, whole = fit(advdef, *options), fit(advdef, *options, name="whole")
    assert_same_training(folder, whole)
    assert losses(folder, "val/loss") == losses(whole, "val/loss")


def test_a_command_repeated_in_a_job_that_was_not_requeued_does_not_continue_unasked(advdef, slurm):
    with pytest.raises(KilledError):
        fit(advdef, signalled_at=3)
    with pytest.raises(ResultFolderError, match="already holds a training"):
        fit(advdef)
    assert min(losses(fit(advdef, "--overwrite", "--trainer.max_epochs=1"))) == 0


def test_a_requeued_fit_from_a_file_passes_over_newer_checkpoints_of_an_earlier_training(advdef, slurm, monkeypatch):
    start = fit(advdef, "--trainer.max_epochs=1", name="start") / "checkpoints" / "last.ckpt"
    fit(advdef)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", lambda *_: None)  # a machine died unannounced
        with pytest.raises(KilledError):
            fit(advdef, f"--ckpt_path={start}", signalled_at=9)
    requeued(monkeypatch)
    for event in (advdef.runs / "run").glob("events*"):
        event.unlink()
    assert min(losses(fit(advdef, f"--ckpt_path={start}"))) == 8, "the earlier training had come to step 24"


def test_a_mistake_in_the_settings_costs_no_checkpoint_of_a_signal(advdef, slurm):
    with pytest.raises(KilledError):
        fit(advdef, signalled_at=3)
    (saved,) = (advdef.runs / "run").glob("hpc_ckpt_*.ckpt")
    with pytest.raises(CheckpointError):
        fit(advdef, "--overwrite", "--model.weights=absent.ckpt")
    assert saved.is_file()
    assert min(losses(fit(advdef, "--overwrite", "--trainer.max_epochs=1"))) == 0
    assert not saved.exists()


def test_another_job_does_not_continue_unasked(advdef, slurm, monkeypatch):
    with pytest.raises(KilledError):
        fit(advdef, signalled_at=3)
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    with pytest.raises(ResultFolderError, match="already holds a training"):
        fit(advdef)
    assert min(losses(fit(advdef, "--overwrite", "--trainer.max_epochs=1"))) == 0


def signal_and_kill(monkeypatch, at_call):
    """Sends the signal in a call of PGD, and kills in the next."""
    calls, perturb = [], PGD.perturb

    def noted(self, *arguments):
        calls.append(1)
        if len(calls) == at_call:
            os.kill(os.getpid(), signal.SIGUSR1)
        if len(calls) == at_call + 1:
            raise KilledError
        return perturb(self, *arguments)

    monkeypatch.setattr(PGD, "perturb", noted)


def evaluate(advdef, *options, name="run"):
    scenarios = [scenario("pgd", "PGD", eps=0.1, steps=3)]
    return advdef.digits("test", "--evaluation.batch_size=4", *options, scenarios=scenarios, name=name)


def test_a_requeued_evaluation_gives_the_rows_of_an_uninterrupted_one(advdef, slurm):
    with pytest.MonkeyPatch.context() as patch:
        signal_and_kill(patch, at_call=2)
        with pytest.raises(KilledError):
            evaluate(advdef)
    assert slurm.read_text() == "requeue 4711\n"
    assert len(list((advdef.runs / "run" / "shards").glob("*.npz"))) == 2
    folder = evaluate(advdef)
    assert result_of(folder)[0]["processes"][0]["images"] == 12, "two batches were judged before"
    assert not (folder / "shards").exists()
    rows = [(path / "robustness.npz").read_bytes() for path in (folder, evaluate(advdef, name="whole"))]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"SLURM_JOB_ID": 4711}, {"SLURM_RESTART_COUNT": 1}),
        ({"TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_RESTART_COUNT": 0}, {"TORCHELASTIC_RESTART_COUNT": 1}),
    ],
    ids=["by SLURM", "by torchrun"],
)
def test_an_evaluation_that_is_started_again_overwrites_what_was_before_it_but_not_itself(
    advdef, monkeypatch, first, again
):
    for name, value in first.items():
        monkeypatch.setenv(name, str(value))

    def interrupted():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "kill", lambda *_: None)
            signal_and_kill(patch, at_call=2)
            with pytest.raises(KilledError):
                evaluate(advdef, "--overwrite", "--trainer.strategy=auto")
        return len(list((advdef.runs / "run" / "shards").glob("*.npz")))

    assert [interrupted(), interrupted()] == [2, 2], "the second line of a script begins anew"
    for name, value in again.items():
        monkeypatch.setenv(name, str(value))
    assert interrupted() == 4
    folder = evaluate(advdef, "--overwrite")
    assert not (folder / "shards").exists()
    assert len(result_of(folder)[1]["index"]) == 20


@pytest.mark.slow
def test_an_evaluation_takes_its_weights_from_the_configuration_whatever_a_signal_has_saved(advdef, slurm):
    with pytest.raises(KilledError):
        advdef.digits("fit", *CLUSTER, *TRAINING, signalled(3))
    with pytest.MonkeyPatch.context() as patch:
        signal_and_kill(patch, at_call=2)
        with pytest.raises(KilledError):
            evaluate(advdef, f"--model.weights={advdef.runs}/run/hpc_ckpt_1.ckpt")
    with pytest.raises(ResultFolderError, match="weights: "):
        evaluate(advdef)
    found = result_of(evaluate(advdef, "--overwrite"))[0]["fingerprint"]["weights"]
    assert found == result_of(evaluate(advdef, name="golden"))[0]["fingerprint"]["weights"]
