"""The files under configs/trainer are run, together with an experiment that has callbacks and scenarios of its own."""

import pytest
import yaml

from lightning_advdef.checkpoints import read_checkpoint
from tests.conftest import ROOT, Command, result_of, scenario
from tests.test_cli import scalars

FOLDER = ROOT / "configs" / "trainer"
TOGETHER = [
    ("robust_validation",),
    ("robust_validation_l2",),
    ("robust_validation", "early_stopping"),
    ("robust_validation_l2", "early_stopping"),
    ("robust_validation", "overfitting_guard"),
]
EXPERIMENT = {
    "model": {
        "class_path": "StandardModule",
        "init_args": {"network": {"class_path": "MLP", "init_args": {"hidden": [8]}}},
    },
    "data": {"class_path": "Digits", "init_args": {"batch_size": 16, "limit": 8, "limit_train": 32, "limit_val": 16}},
    "evaluation": {"scenarios": [scenario("own", "DeepFool", steps=2)]},
    "trainer": {
        "max_epochs": 2,
        "callbacks": [{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.998}}],
    },
}


def fit(folder, *names, arguments=()):
    """Trains with some of the files."""
    (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    files = [folder / "experiment.yaml", *(FOLDER / f"{name}.yaml" for name in names)]
    advdef = Command(folder / "runs")
    return advdef("fit", *(word for file in files for word in ("-c", file)), *arguments)


def test_every_file_is_among_those_that_are_run():
    elsewhere = {"ddp", "slurm"}  # test_nodes.py, test_slurm.py
    assert {path.stem for path in FOLDER.iterdir()} == elsewhere | {name for names in TOGETHER for name in names}


@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_files_add_to_an_experiment(tmp_path, names):
    folder = fit(tmp_path, *names)
    logged = {name for name in scalars(folder) if name.startswith("val/robust_accuracy/")}
    assert logged == {f"val/robust_accuracy/{name}" for name in ("fgsm", "pgd10", "noise")}, "its own are for the test"
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert "averaging_state" in last, "weights are still averaged"
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert ("best.ckpt" in kept) == ("early_stopping" in names)
    assert ("last_good.ckpt" in kept) == ("overfitting_guard" in names)
    assert any(key.startswith("EarlyStopping") for key in last["callbacks"]) == ("early_stopping" in names)


def test_the_best_epoch_can_be_tested_and_is_announced(tmp_path, capsys):
    folder = fit(tmp_path, "robust_validation", "early_stopping")
    best = folder / "checkpoints" / "best.ckpt"
    announced = [line for line in capsys.readouterr().out.splitlines() if line.startswith("best weights:")]
    assert len(announced) == 1
    assert str(best) in announced[0]
    assert "val/robust_accuracy/pgd10" in announced[0]
    Command(tmp_path / "runs")("test", "-c", folder / "config.yaml", "--model.weights", best, "--name=tested")
    (found,) = result_of(tmp_path / "runs" / "tested")[0]["scenarios"]
    assert found["name"] == "own"


def test_a_training_that_is_attacked_every_other_epoch_is_not_stopped_before(tmp_path):
    names = ("robust_validation", "early_stopping")
    folder = fit(tmp_path, *names, arguments=["--evaluation.every_n_epochs=2"])
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"] == 1


@pytest.mark.parametrize(("name", "norm"), [("robust_validation", "linf"), ("robust_validation_l2", "l2")])
def test_budgets_are_the_usual_ones_of_the_data_set(name, norm):
    scenarios = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["evaluation"]["fit_scenarios"]
    assert [entry["eps"] for entry in scenarios] == ["standard"] * 3
    assert {entry["attack"]["init_args"].get("norm", "linf") for entry in scenarios} == {norm}
