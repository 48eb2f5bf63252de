"""Run folders under their names, and what their trainings logged."""

import math

import numpy as np
import pytest

from lightning_advdef.__main__ import run
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.run import read_runs
from tests.evaluation.results import columns, log, minimal, one, write


def names(*items):
    return [(run.title, run.method) for run in read_runs(items)]


def numbered(*folders):
    """Runs on one image each, with its position."""
    rows = columns([True], ("cw", [0.1], [False])) | {"index": np.arange(1)}
    return [write(folder, [minimal()], rows) for folder in folders]


def test_method_is_the_folder_around_it_unless_labelled():
    assert names("runs/pgn/c1", "FGM=runs/fgm/e1") == [("c1", "pgn"), ("FGM", "FGM")]


def test_runs_of_one_name_are_told_apart_by_their_paths():
    assert names("a/c1", "b/c1") == [("a/c1", "a"), ("b/c1", "b")]
    assert names("pgn=a/c1", "pgn=a/c2") == [("a/c1", "pgn"), ("a/c2", "pgn")]


def test_a_folder_given_twice_under_one_name_is_taken_once():
    assert names("runs/a", "runs/b", "./runs/a/", "a=runs/a") == [("a", "runs"), ("b", "runs")]


def test_the_folder_that_one_is_in_has_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert names(".", "../b") == [("a", "runs"), ("b", "runs")]
    assert names(".", folder) == [("a", "runs")]


def test_a_link_keeps_its_own_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "best").symlink_to(tmp_path / "a")
    assert one(tmp_path / "best").title == "best"


def test_a_folder_may_stand_under_two_labels():
    assert names("A=runs/a", "B=runs/a") == [("A", "A"), ("B", "B")]
    shared = ("A=runs/a", "B=runs/a", "A=runs/b")
    assert [title for title, _ in names(*shared)] == list(shared)


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


@pytest.mark.parametrize("command", ["report", "compare"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"cannot be read \(Expecting value.*\)"),
        ('{"clean_acc', r"cannot be read \(Unterminated string.*\)"),
        ("{}", "lacks clean_accuracy, scenarios, worst_case"),
        ("[]", "lacks a JSON object"),
        ('{"clean_accuracy": null, "scenarios": [], "worst_case": []}', "lacks clean_accuracy"),
    ],
)
def test_a_damaged_summary_is_named_with_the_remedy(tmp_path, command, content, problem):
    folders = numbered(tmp_path / "a", tmp_path / "b")
    (folders[1] / "robustness.json").write_text(content)
    with pytest.raises(ResultFolderError, match=rf"^\S*/b/robustness\.json .*{problem}.*: .*--overwrite$"):
        run([command, *map(str, folders)])


@pytest.mark.parametrize("arguments", [["compare"], ["report", "-o", "page.html"]])
@pytest.mark.parametrize("left", [None, 0, 10, 200])
def test_damaged_or_missing_rows_are_named_with_the_remedy(tmp_path, monkeypatch, arguments, left):
    monkeypatch.chdir(tmp_path)
    folders = numbered(tmp_path / "a", tmp_path / "b")
    path = folders[1] / "robustness.npz"
    whole = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(whole[:left])
    problem = "is missing" if left is None else "cannot be read"
    with pytest.raises(ResultFolderError, match=rf"^\S*/b/robustness\.npz {problem}: .*--overwrite$"):
        run([*arguments, *map(str, folders)])


@pytest.mark.parametrize("arguments", [["compare"], ["report", "-o", "page.html"]])
def test_a_folder_that_was_never_tested_says_so(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    folders = numbered(tmp_path / "a", tmp_path / "b")
    for file in folders[1].iterdir():
        file.unlink()
    with pytest.raises(ResultFolderError, match=r"^no finished evaluation in \S*/b .*: run advdef test first$"):
        run([*arguments, *map(str, folders)])
