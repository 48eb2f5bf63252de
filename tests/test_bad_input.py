"""Bad input ends in one sentence and exit status 2, before anything is trained or lost."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_advdef.__main__ import COMMANDS, main, run
from lightning_advdef.messages import shorten
from tests.conftest import GOLDEN, QUIET, Command, scenario
from tests.test_checkpoints import Payload

SMALL = [*QUIET, "--data.limit_train=32", "--data.limit=8", "--data.limit_val=8", "--trainer.max_epochs=1"]
DIGITS = ["--model=StandardModule", "--model.network=MLP", "--model.network.hidden=[32]", "--data=Digits", *SMALL]
WEIGHTS = f"--model.weights={GOLDEN / 'digits_mlp.safetensors'}"


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    """Runs ``advdef`` and gives its one sentence."""

    def call(*arguments, runs=tmp_path / "runs"):
        if arguments[0] in ("fit", "test"):
            arguments = (*arguments, "--runs", str(runs))
        monkeypatch.setattr(sys, "argv", ["advdef", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        written = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
        errors = [line for line in written if line.startswith("advdef: error: ")]
        assert len(errors) == 1
        assert written[-1] == errors[0], "the sentence is one line, and the last"
        assert len(errors[0]) < 500
        return errors[0]

    return call


def attack(name, **settings):
    return f"--evaluation.scenarios={json.dumps([scenario('a', name, **settings)])}"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fit", *DIGITS, "--data=MNIST", "--data.root=/nowhere"], ["MNIST", "/nowhere", "--data.download"]),
        (["fit", *DIGITS, "--model=FooModule"], ["model: ", "no class FooModule", "StandardModule"]),
        (["fit", *DIGITS, "--data=FooData"], ["data: ", "no class FooData", "CIFAR10", "Digits"]),
        (["fit", *DIGITS, "--model.network=FooNet"], ["model.network", "no class FooNet", "LeNet", "MLP"]),
        (["test", *DIGITS, attack("Foo")], ["scenarios.attack", "no class Foo", "PGD"]),
        (["test", *DIGITS, attack("PGD", eps=8)], ["0..1", "got 8", "0-255", "8/255"]),
        (["test", *DIGITS, attack("PGD", eps="big")], ["attack.eps", "8/255", "'big'"]),
        (["test", *DIGITS, attack("PGD", eps=-1)], ["at least 0", "-1"]),
        (["test", *DIGITS, WEIGHTS, attack("PGD", eps=9, norm="l2")], ["l2", "0..8", "got 9"]),
        (["test", *DIGITS, attack("PGD", eps=0.1, norm="l3")], ["linf", "l2", "l1", "l3"]),
        (["test", *DIGITS, attack("PGD")], ["attack", "required", "eps"]),
        (["test", *DIGITS, attack("PGD", eps=0.1, stpes=3)], ["attack", "stpes"]),
        (["test", *DIGITS, attack("PGD", eps=0.1, steps=0)], ["steps", "at least 1", "0"]),
        (["fit", *DIGITS, "--model.network=LeNet"], ["16x16", "8x8", "--model.network"]),
        (["test", *DIGITS, WEIGHTS, "--model.network.hidden=[3]"], ["(32, 64)", "(3, 64)", "--model.network"]),
        (["test", *DIGITS, "--model.weights=/nowhere.ckpt"], ["no checkpoint at /nowhere.ckpt"]),
        (["fit", *DIGITS, "--ckpt_path=last"], ["--ckpt_path last", "last.ckpt"]),
        (["fit", *DIGITS, "--ckpt_path=/nowhere.ckpt"], ["no checkpoint at /nowhere.ckpt"]),
        (["test", *DIGITS, "--ckpt_path=x.ckpt"], ["--model.weights", "--ckpt_path"]),
        (["fit", *DIGITS, "--model.votes=0"], ["votes", "at least 1", "--model.votes"]),
        (["fit", *DIGITS, "--data.batch_size=0"], ["batch_size", "at least 1", "--data.batch_size"]),
        (["fit", *DIGITS, "--trainer.max_epochs=many"], ["trainer.max_epochs", "int", "many"]),
        (["fit", *DIGITS, "--trainer.max_epoch=3"], ["unrecognized", "--trainer.max_epoch"]),
        (["fit", *DIGITS, "--overwrit"], ["unrecognized", "--overwrit"]),
        (["fit", *DIGITS, "--trainer.accelerator=tpu"], ["torch_xla"]),
        (["fit", "-c", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["fit"], ["required", "model", "data"]),
        (
            ["train"],
            ["no command 'train'", "fit, validate, test, predict, report, compare, calibrate, distill, export"],
        ),
        (["report", "/nowhere"], ["/nowhere", "advdef test"]),
        (["calibrate", *DIGITS], ["StandardModule", "nothing to calibrate"]),
        (["fit", *DIGITS, "--data.spec=x"], ["data", "spec"]),
    ],
    ids=lambda value: " ".join(value[-1:]) if value[0] in ("fit", "test", "train", "report", "calibrate") else None,
)
def test_one_sentence_names_the_value_and_the_remedy(fails, arguments, parts):
    message = fails(*arguments)
    for part in parts:
        assert part in message, message


def test_a_fault_in_the_syntax_of_a_file(fails, tmp_path):
    path = tmp_path / "cut.yaml"
    path.write_text("evaluation:\n  scenarios:\n    - {name: a, attack: {class_path: PGD\n")
    message = fails("fit", *DIGITS, "-c", path)
    assert f"error: {path} is not valid YAML at line 4, column 1: did not find expected ',' or '}}'" in message


def test_help_names_all_commands(capsys):
    with pytest.raises(SystemExit):
        run(["--help"])
    listed = " ".join(capsys.readouterr().out.rpartition("subcommands:")[2].split())
    assert all(f"advdef {command} " in listed for command in COMMANDS)


def test_two_scenarios_of_one_name(fails):
    twice = json.dumps([scenario("a", "DeepFool"), scenario("a", "DeepFool")])
    assert "two scenarios are named 'a'" in fails("test", *DIGITS, f"--evaluation.scenarios={twice}")


def test_folder_that_cannot_be_made(fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another --runs" in fails("fit", *DIGITS, runs=tmp_path / "file")


@pytest.mark.parametrize("flag", ["--model.weights", "--ckpt_path"])
def test_pickled_objects_do_not_run(fails, tmp_path, flag):
    torch.save({"state_dict": Payload(str(tmp_path / "ran"))}, tmp_path / "evil.ckpt")
    assert "pickled Python objects" in fails("fit", *DIGITS, f"{flag}={tmp_path / 'evil.ckpt'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("flag", ["--model.weights", "--ckpt_path"])
def test_truncated_checkpoint(fails, tmp_path, flag):
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, tmp_path / "cut.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "cut.ckpt").read_bytes()[:1000])
    message = fails("fit", *DIGITS, f"{flag}={tmp_path / 'cut.ckpt'}")
    assert "truncated" in message
    assert "cut.ckpt" in message


def test_class_count_of_the_file_does_not_fit_the_network(fails, tmp_path):
    x, y = np.zeros((6, 1, 8, 8), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    own = ["--data=NPZ", f"--data.root={tmp_path / 'a.npz'}"]
    message = fails("test", *DIGITS, *own, WEIGHTS)
    assert "head" in message
    assert "(10, 32)" in message
    assert "(3, 32)" in message
    assert "label 2" in fails("fit", *DIGITS, *own, "--data.spec=1x8x8x2")


def trained(runs):
    """A training with a test's result; content of all its files."""
    command = Command(runs)
    folder = command.digits("fit", "--trainer.max_epochs=1", name="unnamed")
    command.digits("test", scenarios=[scenario("a", "FGSM", eps=0.1)], name="unnamed")
    return folder


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_mistake_loses_no_file_even_with_overwrite(fails, tmp_path):
    folder = trained(tmp_path / "runs")
    before = files(folder)
    for mistake in (
        ["--data=MNIST", "--data.root=/nowhere"],
        ["--model.network=LeNet"],
        ["--model.weights=/nowhere.ckpt"],
        ["--trainer.max_epochs=many"],
    ):
        fails("fit", *DIGITS, "--overwrite", *mistake)
    fails("test", *DIGITS, "--overwrite", "--model.weights=/nowhere.ckpt", attack("FGSM", eps=0.1))
    after = files(folder)
    assert {name: after.get(name) for name in before if name.name != "hparams.yaml"} == {
        name: value for name, value in before.items() if name.name != "hparams.yaml"
    }


def test_fit_refuses_a_folder_that_holds_a_training(fails, tmp_path):
    folder = trained(tmp_path / "runs")
    before = files(folder)
    message = fails("fit", *DIGITS)
    assert "--ckpt_path last" in message
    assert "--overwrite" in message
    assert files(folder) == before


def test_fit_with_overwrite_replaces_the_training_and_keeps_results(tmp_path):
    folder = trained(tmp_path / "runs")
    result = (folder / "robustness.json").read_bytes()
    Command(tmp_path / "runs").digits("fit", "--trainer.max_epochs=2", "--overwrite", name="unnamed")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["epoch=1-step=2.ckpt", "last.ckpt"]
    assert (folder / "robustness.json").read_bytes() == result


def test_weights_without_training_state_cannot_be_continued(fails, tmp_path):
    folder = trained(tmp_path / "runs")
    message = fails("fit", *DIGITS, f"--ckpt_path={folder / 'model.ckpt'}")
    assert "--model.weights instead of --ckpt_path" in message


def test_result_of_a_different_run(fails, tmp_path):
    trained(tmp_path / "runs")
    message = fails("test", *DIGITS, WEIGHTS, attack("FGSM", eps=0.2))
    assert "--overwrite" in message
    assert "different run" in message


def test_an_own_message_is_left_as_it_is():
    assert shorten("eps must be a number") == "eps must be a number"


@pytest.mark.parametrize("module", [["-m", "lightning_advdef"]])
def test_as_a_process(module, tmp_path):
    command = [sys.executable, *module, "fit", *DIGITS, "--model.network=FooNet", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("advdef: error: model.network: there is no class FooNet")
    assert "Traceback" not in done.stderr
