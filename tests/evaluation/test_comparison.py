"""Two runs on the same images."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_advdef.__main__ import run
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.comparison import Comparison, Contest, compare, write_winners
from lightning_advdef.evaluation.run import read_runs
from tests.conftest import scenario
from tests.evaluation.results import columns, spending, write

RIGHT = (True, True, True, False)
SCENARIOS = [scenario("pgd", "PGD", eps=0.1, steps=3)]


def evaluated(folder, after, right=RIGHT, scenarios=("fgm",), eps=0.5, **changes):
    """A run under l2 scenarios of one budget, with who is right after all of them."""
    rows = columns(right, *((name, [eps] * len(right), after) for name in scenarios))
    rows |= {"index": np.arange(len(right)) * 10} | changes
    write(folder, [spending(name, sum(after) / len(right), eps=eps) for name in scenarios], rows)
    result = json.loads((folder / "robustness.json").read_text())
    result["worst_case"] = [{"norm": "l2", "eps": eps, "accuracy": {}}]
    result["fingerprint"] = {"data": {"class": "Mine", "images": "hash"}}
    (folder / "robustness.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def pair(tmp_path):
    """The second keeps another image than the first, and one that the first gets wrong from the start."""
    return [
        evaluated(tmp_path / "a", (True, True, False, False)),
        evaluated(tmp_path / "b", (False, True, False, True), right=(True, True, True, True)),
    ]


def test_winners_are_found_on_clean_images_each_scenario_and_the_worst_case(pair):
    found = compare(*read_runs(pair))
    assert [(c.name, c.only_first, c.only_second) for c in found.contests] == [
        ("clean", [], [30]),
        ("fgm", [0], [30]),
        ("worst of the common scenarios, l2 0.5", [0], [30]),
    ]
    assert found.contests[0].difference.value == pytest.approx(-0.25)
    assert found.contests[1].difference.p_value == 1.0


def test_worst_case_is_over_shared_scenarios_alone(tmp_path):
    first = evaluated(tmp_path / "a", (True, True, False, False))
    second = evaluated(tmp_path / "b", (True, True, False, False), scenarios=("fgm", "stronger"))
    rows = dict(np.load(second / "robustness.npz"))
    np.savez(second / "robustness.npz", **rows | {"stronger/correct": np.zeros(4, dtype=np.float32)})
    found = compare(*read_runs([first, second]))
    # another name than in the table of a run, where all scenarios count
    assert found.contests[-1].name == "worst of the common scenarios, l2 0.5"
    assert found.contests[-1].difference.value == 0.0
    assert found.notes == ("only b ran stronger",)


def test_another_attack_of_the_same_name_is_left_out_with_a_reason(tmp_path):
    folders = [evaluated(tmp_path / str(eps), (True,) * 4, right=(True,) * 4, eps=eps) for eps in (0.5, 1.0)]
    found = compare(*read_runs(folders))
    assert [contest.name for contest in found.contests] == ["clean"]
    (note,) = found.notes
    assert "fgm is left out" in note
    assert "1.0 there, 0.5 now" in note


@pytest.mark.parametrize("changed", [{"index": np.arange(4)}, {"label": np.ones(4, dtype=np.int64)}])
def test_other_images_are_refused_in_one_sentence(pair, tmp_path, changed):
    other = evaluated(tmp_path / "other", (True, True, False, False), **changed)
    with pytest.raises(ResultFolderError, match=r"judged different images \(4 and 4\).*--data\.limit"):
        compare(*read_runs([pair[0], other]))


def state_data(folders, *descriptions):
    for folder, data in zip(folders, descriptions, strict=True):
        result = json.loads((folder / "robustness.json").read_text())
        result["fingerprint"] = {"data": data}
        (folder / "robustness.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    "descriptions",
    [
        ({"images": "mnist"}, {"images": "fashion"}),
        ({"class": "Tensor", "images": "mnist"}, {"class": "MNIST", "images": "fashion"}),
        ({"class": "MNIST", "images": "mnist"}, {"class": "MNIST", "images": None}),
        ({"class": "Mine", "images": None}, {"class": "Other", "images": None}),
    ],
)
def test_same_indices_and_labels_of_other_images_are_refused(pair, descriptions):
    state_data(pair, *descriptions)
    with pytest.raises(ResultFolderError, match=r"a and .*b judged different images, or .* same --data$"):
        compare(*read_runs(pair))


@pytest.mark.parametrize(
    ("descriptions", "notes"),
    [
        (({"class": "Tensor", "images": "mnist"}, {"class": "MNIST", "images": "mnist", "seed": 1}), 0),
        (({"class": "Mine", "images": None}, {"class": "Mine", "images": None, "mean_image": "mean"}), 1),
    ],
)
def test_equal_hashes_or_with_a_note_equal_labels_are_the_same_images(pair, descriptions, notes):
    state_data(pair, *descriptions)
    found = compare(*read_runs(pair))
    assert found.contests
    assert len(found.notes) == notes
    assert all("rests on equal positions and labels" in note for note in found.notes)


def test_pixels_are_recognised_from_any_data_module_and_adversarial_images_are_others(advdef, tmp_path):
    whole = {"scenarios": SCENARIOS, "limit": "null"}  # of all images the positions are the same, too
    first = advdef.digits("predict", "--evaluation.write=pgd", **whole, name="first")
    advdef.digits("test", **whole, name="first")
    with np.load(first / "adversarial_pgd.npz") as arrays:
        images = {name: arrays[name] for name in ("x_clean", "x_test", "y_test")}
    tested = {}
    for name in ("x_clean", "x_test"):
        path = tmp_path / f"{name}.npz"
        np.savez(path, x_test=images[name], y_test=images["y_test"])
        own = ("--data=NPZ", f"--data.root={path}", "--data.spec=digits")
        tested[name] = advdef.digits("test", *own, **whole, name=name)
    assert compare(*read_runs([first, tested["x_clean"]])).contests[0].difference.value == 0
    with pytest.raises(ResultFolderError, match="different images, or"):
        compare(*read_runs([first, tested["x_test"]]))


def test_command_prints_and_writes_a_row_per_image(pair, tmp_path, capsys):
    path = tmp_path / "winners.csv"
    run(["compare", *map(str, pair), "-o", str(path)])
    printed = capsys.readouterr().out
    assert "clean: only B is right on image 30" in printed
    assert "-25.00" in printed
    rows = list(csv.DictReader(path.open()))
    assert [row["index"] for row in rows] == ["0", "10", "20", "30"]
    assert [row["fgm: wins"] for row in rows] == ["A", "", "", "B"]
    assert [float(row["fgm: A a"]) for row in rows] == [1, 1, 0, 0]


def test_the_last_bit_of_a_mean_over_draws_wins_nothing(tmp_path):
    third = torch.tensor([0.1, 0.2, 0.3, 0.7])
    contest = Contest("clean", "", torch.arange(4), third, third * (1 + 2e-7))
    assert (contest.only_first, contest.only_second) == ([], [])
    write_winners(Comparison((contest,), ()), ("a", "b"), tmp_path / "winners.csv")
    assert [row["clean: wins"] for row in csv.DictReader((tmp_path / "winners.csv").open())] == [""] * 4


def test_only_csv_is_written(pair):
    with pytest.raises(ValueError, match=r"ends in \.csv, got x\.html"):
        run(["compare", *map(str, pair), "-o", "x.html"])


def test_a_run_is_not_compared_with_itself(pair):
    with pytest.raises(ValueError, match="are the same run: name two different folders"):
        run(["compare", str(pair[0]), f"{pair[0]}/"])


def test_comparison_needs_neither_lightning_nor_matplotlib(pair):
    code = f"import sys; from lightning_advdef.__main__ import run; run(['compare', *{list(map(str, pair))!r}]); "
    code += "print('left out:', not {'pytorch_lightning', 'matplotlib', 'torchmetrics'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "left out: True" in done.stdout
