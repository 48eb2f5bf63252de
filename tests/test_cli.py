"""The command line: run folder, resuming, composing, as users start it."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_advdef.__main__ import main, run
from lightning_advdef.cli import AdvDefCLI
from lightning_advdef.data.specs import standard_eps
from lightning_advdef.defenses import DefenseModule
from tests.conftest import QUIET, ROOT, result_of, scenario

TRAINING = ["--trainer.max_epochs=3", "--data.batch_size=16", "--trainer.log_every_n_steps=1"]


def losses(folder, name="train/loss"):
    """Training loss of every step, over all event files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted(folder.glob("events*")):
        events = EventAccumulator(str(path))
        events.Reload()
        if name in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars(name)}
    return found


def scalars(folder):
    """Last value of every scalar of a run's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted(folder.glob("events*")):
        events = EventAccumulator(str(path))
        events.Reload()
        found |= {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    return found


def weights(folder):
    return torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]


def assert_same_training(one, other):
    assert losses(one) == losses(other)
    assert len(losses(one)) > 3
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_run_folder_holds_what_is_documented(advdef):
    folder = advdef.digits("fit", *TRAINING)
    assert folder == advdef.runs / "run"
    names = {path.name.split(".out.")[0] for path in folder.iterdir()}
    assert names == {"checkpoints", "config.yaml", "events", "hparams.yaml", "model.ckpt"}
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_without_logger_the_files_still_go_to_the_run_folder(advdef, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = advdef.digits("fit", *TRAINING, "--trainer.logger=false")
    assert (folder / "config.yaml").is_file()
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}


def test_saved_configuration_repeats_the_run(advdef):
    folder = advdef.digits("fit", *TRAINING)
    again = advdef("fit", "-c", folder / "config.yaml", "--name=again", quiet=False)
    assert_same_training(folder, again.parent / "again")


def test_same_seed_same_training_other_seed_another(advdef):
    one, two = (advdef.digits("fit", *TRAINING, name=name) for name in ("one", "two"))
    assert_same_training(one, two)
    three = advdef.digits("fit", *TRAINING, "--seed_everything=1", name="three")
    assert losses(three) != losses(one)


class Interrupt(Callback):
    """Raises after some steps."""

    def __init__(self, step=12, by_user=False):
        self.step, self.by_user = step, by_user

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt if self.by_user else RuntimeError("the power went off")


@pytest.mark.parametrize(("step", "epoch"), [(3, None), (12, 1)], ids=["nothing to continue", "a checkpoint"])
def test_a_user_who_interrupts_a_fit_is_told_what_is_kept(advdef, capsys, step, epoch):
    callback = {"class_path": "tests.test_cli.Interrupt", "init_args": {"step": step, "by_user": True}}
    with pytest.raises(SystemExit):
        advdef.digits("fit", *TRAINING, f"--trainer.callbacks={json.dumps([callback])}")
    last = advdef.runs / "run" / "checkpoints" / "last.ckpt"
    told = f"interrupted in epoch {epoch}: --ckpt_path last continues from {last}\n"
    printed = capsys.readouterr().out
    assert printed.endswith(told) if epoch else "interrupted" not in printed


@pytest.mark.parametrize("step", [8, 12], ids=["at the end of an epoch", "within an epoch"])
def test_an_interrupted_fit_continues_to_the_same_weights(advdef, step):
    options = [*TRAINING, "--model.network.batch_norm=true"]
    whole = advdef.digits("fit", *options, name="whole")
    callback = {"class_path": "tests.test_cli.Interrupt", "init_args": {"step": step + 1}}
    interrupt = f"--trainer.callbacks={json.dumps([callback])}"
    with pytest.raises(RuntimeError, match="power"):
        advdef.digits("fit", *options, interrupt)
    assert not (advdef.runs / "run" / "model.ckpt").exists()
    assert_same_training(whole, advdef.digits("fit", *options, "--ckpt_path=last"))


@pytest.mark.slow
def test_a_killed_fit_continues_to_the_same_weights(advdef):
    options = [*TRAINING, "--trainer.max_epochs=60", "--trainer.limit_train_batches=8"]
    whole = advdef.digits("fit", *options, name="whole")
    command = [sys.executable, "-m", "tests.test_cli", str(advdef.runs), *options]
    process = subprocess.Popen(command, cwd=ROOT)
    last = advdef.runs / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 60
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last.is_file()
    assert not (advdef.runs / "run" / "model.ckpt").exists(), "it was killed too late to say anything"
    assert_same_training(whole, advdef.digits("fit", *options, "--ckpt_path=last"))


@pytest.mark.slow
def test_two_processes_as_a_user_starts_them(advdef):
    arguments = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.limit=21"]
    scenarios = [scenario("pgd", "PGD", eps=0.1, steps=3)]
    network = ["--model=StandardModule", "--model.network=MLP", "--model.network.hidden=[32]", "--data=Digits"]
    golden = f"--model.weights={ROOT / 'tests' / 'golden' / 'digits_mlp.safetensors'}"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lightning_advdef", "test", *network, golden, *arguments, "--data.batch_size=4"),
            *(f"--evaluation.scenarios={json.dumps(scenarios)}", "--runs", str(advdef.runs), "--name=two"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    single = result_of(advdef.digits("test", scenarios=scenarios, limit=21, name="one"))[1]
    double = result_of(advdef.runs / "two")[1]
    for name in ("index", "clean/correct", "pgd/correct", "pgd/prediction"):
        np.testing.assert_array_equal(single[name], double[name])


def test_suites_append_to_the_scenarios_of_an_experiment(advdef, tmp_path):
    suite = {"evaluation": {"scenarios+": [scenario("fgsm", "FGSM", eps="8/255")]}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    first = [scenario("df", "DeepFool")]
    # an experiment with scenarios, and one without
    both = advdef.digits("test", "-c", tmp_path / "suite.yaml", scenarios=None, name="none")
    assert [found["name"] for found in result_of(both)[0]["scenarios"]] == ["fgsm"]
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({"evaluation": {"scenarios": first}}))
    folder = advdef.digits("test", "-c", tmp_path / "experiment.yaml", "-c", tmp_path / "suite.yaml", name="two")
    summary = result_of(folder)[0]
    assert [found["name"] for found in summary["scenarios"]] == ["df", "fgsm"]
    assert summary["scenarios"][1]["attack"]["init_args"]["eps"] == 8 / 255


def test_printed_configuration_can_be_read_again(tmp_path, capsys):
    def printed(*files):
        with pytest.raises(SystemExit):
            run(["test", *(word for file in files for word in ("-c", str(file))), "--print_config"])
        return capsys.readouterr().out

    first = printed(ROOT / "configs/standard/digits.yaml", ROOT / "configs/evaluation/demo.yaml")
    (tmp_path / "first.yaml").write_text(first)
    second = printed(tmp_path / "first.yaml")
    (tmp_path / "second.yaml").write_text(second)
    assert printed(tmp_path / "second.yaml") == second
    # the default surrogate, a class, is spelled out when it is read
    assert spelled_out(yaml.safe_load(first)) == yaml.safe_load(second)
    assert len(yaml.safe_load(second)["evaluation"]["scenarios"]) == 4


def spelled_out(config):
    for entry in config["evaluation"]["scenarios"]:
        entry["surrogate"] = {"class_path": entry["surrogate"]}
    return config


def test_the_command_sees_modules_of_the_current_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_package_beside.py").write_text("from torch.nn import Linear as OwnNet")
    monkeypatch.chdir(tmp_path)
    own = ["--model.network=WrappedClassifier", "--model.network.module=own_package_beside.OwnNet"]
    monkeypatch.setattr(
        sys, "argv", ["advdef", "test", "--model=StandardModule", "--data=Digits", *own, "--print_config"]
    )
    before = [place for place in sys.path if place not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", [*before])
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, sys.path) == (0, [str(tmp_path), *before]), capsys.readouterr().err


@pytest.mark.parametrize(("stop", "status"), [(SIGTERMException(), 143), (SystemExit(0), 0), (SystemExit(2), 2)])
def test_a_stop_by_a_signal_is_no_success(monkeypatch, capsys, stop, status):
    def run(arguments):
        raise stop

    monkeypatch.setattr("lightning_advdef.__main__.run", run)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == status
    assert ("--ckpt_path last" in capsys.readouterr().err) == (status == 143)


def test_a_stopped_process_that_another_started_kills_no_other(monkeypatch, capsys):
    def run(arguments):
        raise SIGTERMException

    monkeypatch.setattr("lightning_advdef.__main__.run", run)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, capsys.readouterr().err) == (None, "")


def test_the_data_set_gives_the_network_its_shape(advdef):
    network = ["--model=StandardModule", "--model.network=MLP", "--data=tests.toys.Toy", "--data.toy_spec=3x4x4x7"]
    cli = AdvDefCLI(args=[*network, *QUIET, "--runs", str(advdef.runs)], run=False)
    assert cli.model.spec.shape == (3, 4, 4)
    assert cli.model.classifier.head.out_features == 7


def test_options_of_the_evaluation_are_found_again_in_the_result(advdef, tmp_path):
    options = ("--evaluation.search=bfloat16", "--evaluation.rounded=true", f"--evaluation.cache={tmp_path / 'cache'}")
    scenarios = [scenario("pgd", "PGD", eps=0.1, steps=2)]
    summary, rows = result_of(advdef.digits("test", *options, scenarios=scenarios))
    evaluation = summary["fingerprint"]["evaluation"]
    assert (evaluation["search"], evaluation["rounded"]) == ("bfloat16", True)
    assert summary["flags"]["search"] == "bfloat16"
    rounded = np.where(rows["clean/correct"] > 0, rows["pgd/rounded_correct"], 0)
    assert summary["scenarios"][0]["rounded_accuracy"]["value"] == pytest.approx(rounded.mean())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    again = result_of(advdef.digits("test", *options, scenarios=scenarios, name="again"))[1]
    assert all(np.array_equal(rows[name], again[name], equal_nan=True) for name in rows)


def test_one_scenario_may_have_several_budgets_or_the_usual_one(advdef, tmp_path):
    suite = """evaluation:
  scenarios:
    - {name: several, attack: {class_path: PGD, init_args: {eps: 0.1, steps: 2}}, eps: [8/255, 2/255, 4/255]}
    - {name: usual, attack: {class_path: FGSM, init_args: {eps: 0.07}}, eps: standard}
"""
    (tmp_path / "suite.yaml").write_text(suite)
    folder = advdef.digits("test", "-c", tmp_path / "suite.yaml", "--data.limit=10")
    summary, _ = result_of(folder)
    found = [(row["name"], row["eps"], row["after"]) for row in summary["scenarios"]]
    names = [f"several/eps{eps / 255:.4g}" for eps in (2, 4, 8)]
    sizes = [eps / 255 for eps in (2, 4, 8)]
    usual = ("usual", standard_eps("digits", "linf"), None)
    assert found == [*zip(names, sizes, [None, *names[:2]], strict=True), usual]
    accuracies = [row["robust_accuracy"]["value"] for row in summary["scenarios"][:3]]
    assert accuracies == sorted(accuracies, reverse=True)
    tags = scalars(folder)
    assert [tags[f"test/robust_accuracy/{name}"] for name in names] == pytest.approx(accuracies)


def test_strict_mode_refuses_bfloat16(advdef):
    with pytest.raises(ValueError, match=r"^strict mode [^\n]*$"):
        advdef.digits("test", "--evaluation.strict=true", "--evaluation.search=bfloat16")


@pytest.mark.parametrize(
    ("command", "asked", "instead"),
    [
        ("fit", "--trainer.precision=bf16-mixed", "--trainer.precision 32-true"),
        ("test", "--evaluation.search=bfloat16", "--evaluation.search float32"),
    ],
)
def test_a_processor_without_bfloat16_is_told_of(advdef, monkeypatch, command, asked, instead):
    small = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"]
    monkeypatch.setattr("lightning_advdef.cli.get_cpu_capability", lambda: "AVX2")
    with pytest.warns(UserWarning, match=f"emulated .*: {instead}"):
        advdef.digits(command, asked, *small, name="slow")
    monkeypatch.setattr("lightning_advdef.cli.get_cpu_capability", lambda: "AVX512")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        advdef.digits(command, asked, *small, name="fast")
    assert not [one for one in heard if "emulated" in str(one.message)]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize(
    "model", [["StandardModule"], ["PurificationModule", "--model.purifier=JPEG"]], ids=["network", "purifier"]
)
def test_a_network_with_random_weights_is_told_of(advdef, command, model):
    small = ["--data=Digits", "--data.limit=4", "--data.limit_val=4", "--model.network=MLP"]
    with pytest.warns(UserWarning, match="no --model.weights were given: the network runs as it starts") as heard:
        advdef(command, "--model", *model, *small)
    assert len([one for one in heard if "random weights" in str(one.message)]) == 1


def test_weights_that_were_given_or_may_be_its_own_are_not_told_of(advdef):
    wrapped = ["--model.network=WrappedClassifier", "--model.network.module=tests.models.test_wrapped.Net"]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        advdef.digits("test", name="given")
        advdef("test", "--model=StandardModule", *wrapped, "--data=Digits", "--data.limit=4", name="own")
        advdef.digits("fit", "--trainer.max_epochs=1", name="fit")
    assert not [one for one in heard if "random weights" in str(one.message)]


def test_report_prints_runs_side_by_side(advdef, capsys):
    scenarios = [scenario("pgd", "PGD", eps=0.1, steps=2), scenario("df", "DeepFool", steps=2)]
    folders = [advdef.digits("test", scenarios=scenarios[:count], name=f"run{count}") for count in (1, 2)]
    capsys.readouterr()
    run(["report", *map(str, folders)])
    printed = capsys.readouterr().out
    for part in ("run1", "run2", "clean accuracy", "pgd", "df: rho", "worst case, linf 0.1", "20"):
        assert part in printed


def test_report_tells_runs_of_one_name_apart(advdef, capsys):
    folder = advdef.digits("test", scenarios=[scenario("pgd", "PGD", eps=0.1, steps=2)])
    other = advdef.runs / "a" / "run"
    other.mkdir(parents=True)
    (other / "robustness.json").write_bytes((folder / "robustness.json").read_bytes())
    capsys.readouterr()
    run(["report", str(folder), str(other)])
    # one column each, whatever the width of the terminal
    assert capsys.readouterr().out.count("[") >= 4


class WithDelta(DefenseModule):
    """Its value is the number of training images."""

    def calibrate(self, data):
        data.setup("fit")
        return {"delta": float(len(data._source("train").labels))}


def test_calibrate_prints_values_by_their_name(advdef, capsys):
    arguments = ["--model=tests.test_cli.WithDelta", "--model.network=MLP", "--data=Digits"]
    run(["calibrate", *arguments, "--runs", str(advdef.runs)])
    assert "delta: 1438" in capsys.readouterr().out


if __name__ == "__main__":
    from pathlib import Path

    from tests.conftest import Command

    Command(Path(sys.argv[1])).digits("fit", *sys.argv[2:])
