"""Run folders under their names, and what their trainings logged."""

import math

from lightning_advdef.evaluation.run import read_runs
from tests.evaluation.results import log, one


def names(*items):
    return [(run.title, run.method) for run in read_runs(items)]


def test_method_is_the_folder_around_it_unless_labelled():
    assert names("runs/pgn/c1", "FGM=runs/fgm/e1") == [("c1", "pgn"), ("FGM", "FGM")]


def test_runs_of_one_name_are_told_apart_by_their_paths():
    assert names("a/c1", "b/c1") == [("a/c1", "a"), ("b/c1", "b")]
    assert names("pgn=a/c1", "pgn=a/c2") == [("a/c1", "pgn"), ("a/c2", "pgn")]


def test_a_folder_with_the_sign_of_a_label_is_a_folder(tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    assert one(folder).folder == folder


def test_scalars_of_a_continued_training_are_its_last(tmp_path):
    log(tmp_path, {"loss": {1: 0.5, 2: 0.25, 3: math.nan}})
    log(tmp_path, {"loss": {2: 0.125}})
    assert one(tmp_path).scalars("loss") == {1: 0.5, 2: 0.125}
    assert one(tmp_path).scalars("accuracy") == {}


def test_time_of_an_epoch_is_the_median(tmp_path):
    assert one(tmp_path).seconds_per_epoch() is None
    log(tmp_path, {"train/seconds_per_epoch": {1: 9.0, 2: 2.0, 3: 2.5}})
    assert one(tmp_path).seconds_per_epoch() == 2.5
