"""The path of a training, from what it logged."""

import math

import pytest

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.run import read_runs
from lightning_advdef.evaluation.trajectory import trajectory
from tests.evaluation.results import log


def test_path_has_a_point_per_attacked_epoch(tmp_path):
    # epochs of 10 steps, every other one attacked; step 0 is a validation outside of the training
    norms = {0: 9.0, 9: math.nan, 19: 0.25, 29: 0.25, 39: 0.5}
    accuracies = {0: 0.1, 9: 0.5, 19: 0.625, 29: 0.75, 39: 0.875}
    epochs = {9: 0.0, 19: 1.0, 29: 2.0, 39: 3.0}
    log(tmp_path / "run", {"val/mean_norm/cw": norms, "val/clean_accuracy": accuracies, "epoch": epochs})
    (curve,) = trajectory(read_runs([tmp_path / "run"]), "cw").curves
    assert [(point.x, point.y, point.name) for point in curve.points] == [(0.25, 0.625, "2"), (0.5, 0.875, "4")]


def test_a_training_without_attacks_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ResultFolderError, match="logged no val/mean_norm/cw"):
        trajectory(read_runs([tmp_path / "run"]), "cw")


def test_the_scenario_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="trajectory needs --scenario"):
        trajectory(read_runs([tmp_path]))
