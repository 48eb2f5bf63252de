"""Curves from result folders made by hand."""

import pytest
import torch

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.curves import accuracy_norm, counted_norms, robustness
from lightning_advdef.evaluation.run import read_runs
from lightning_advdef.metrics import norm_summary
from tests.evaluation.results import accuracy, attack_of, columns, evaluated, minimal, one, write


@pytest.fixture
def sweep(tmp_path):
    """Three runs of two methods, of larger and larger norm; the last image is wrong without an attack."""
    evaluated(tmp_path / "pgn" / "c9", [0.2, 0.3, 0.4, 9.0])
    evaluated(tmp_path / "pgn" / "c1", [0.5, 0.6, 0.7, 9.0])
    evaluated(tmp_path / "fgm" / "e1", [0.1, 0.2, 0.3, 9.0])
    return read_runs([tmp_path / "pgn" / "c1", tmp_path / "pgn" / "c9", tmp_path / "fgm" / "e1"])


def points_of(chart):
    return {curve.label: [(point.x, point.y) for point in curve.points] for curve in chart.curves}


def test_robustness_has_a_curve_per_method_by_ascending_norm(sweep):
    found = points_of(robustness(sweep))
    assert found["pgn"] == [pytest.approx((0.3, 0.75)), pytest.approx((0.6, 0.75))]
    assert found["fgm"] == [pytest.approx((0.2, 0.75))]


def test_misclassified_images_count_as_0_on_request_and_the_axis_says_so(sweep):
    chart = robustness(sweep, misclassified="included")
    assert points_of(chart)["fgm"] == [pytest.approx((0.6 / 4, 0.75))]
    assert "count as 0" in chart.x_label
    assert "left out" in robustness(sweep).x_label


def test_robustness_says_which_method_lies_outside(sweep):
    assert (
        robustness(sweep).notes[0].startswith("pgn lies outside fgm: at 75.00% clean accuracy norm 0.600 against 0.200")
    )


def test_norm_has_the_interval_of_a_mean(sweep):
    (point,) = robustness(sweep).curves[1].points
    half = 1.959964 * 0.1 / 3**0.5
    assert point.x_interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)


@pytest.mark.parametrize("convention", ["excluded", "included"])
def test_norms_counted_are_those_of_the_summary(convention):
    generator = torch.Generator().manual_seed(0)
    right, after = torch.rand(2, 40, generator=generator) > 0.4
    norms = torch.rand(40, generator=generator)
    rows = {name: torch.as_tensor(column) for name, column in columns(right, ("cw", norms, after & right)).items()}
    summary = norm_summary(norms, ~(after & right), ~right)._asdict()
    assert float(counted_norms(rows, "cw", "l2", convention).mean()) == pytest.approx(summary[f"mean_{convention}"])


def test_an_attack_that_broke_nothing_has_no_norm(tmp_path):
    run = one(evaluated(tmp_path / "run", [0.1] * 4, after=(True,) * 4))
    with pytest.raises(ResultFolderError, match="broke no image"):
        robustness([run])


def test_accuracy_falls_at_each_norm_and_wrong_images_are_lost_at_0(tmp_path):
    run = one(evaluated(tmp_path / "run", [0.5, 0.2, 0.3, 9.0], after=(False, False, True, False)))
    chart = accuracy_norm([run])
    expected = [(0.0, 0.75), (0.2, 0.5), (0.5, 0.25)]
    assert points_of(chart)["run"] == [pytest.approx(point) for point in expected]
    assert chart.notes == ("run: 75.00% of the images right without a perturbation, half of all lost at norm 0.200",)


@pytest.mark.parametrize("figure", [robustness, accuracy_norm])
@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"attack": attack_of("CarliniWagnerL2", steps=9)}, r"attack\.init_args\.steps: None there, 9 now"),
        ({"norm": "linf"}, "norm: l2 there, linf now"),
        ({"robust_accuracy": accuracy(0.0) | {"images": 9}}, "images: 4 there, 9 now"),
    ],
)
def test_only_equal_attacks_on_as_many_images_are_compared(tmp_path, figure, changes, difference):
    folders = [evaluated(tmp_path / "a", [0.1] * 4), evaluated(tmp_path / "b", [0.1] * 4, **changes)]
    with pytest.raises(ResultFolderError, match=difference):
        figure(read_runs(folders))


def test_attacks_through_networks_of_their_own_are_compared(tmp_path):
    networks = {name: [{"class_path": "Transfer", "init_args": {"checkpoint": name}}] for name in "ab"}
    folders = [evaluated(tmp_path / name, [0.1] * 4, made_by=network) for name, network in networks.items()]
    assert len(accuracy_norm(read_runs(folders)).curves) == 2


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (("df",), None, "df"),
        (("df", "my_cw", "cw2"), None, "my_cw"),
        (("df", "cw"), "df", "df"),
        (("df", "ddn"), None, None),
        (("df", "cw"), "ddn", None),
    ],
)
def test_scenario_is_the_only_one_or_that_of_carlini_and_wagner(tmp_path, names, wanted, chosen):
    rows = columns([True, True], *((name, [0.1, 0.2], (False, False)) for name in names))
    run = one(write(tmp_path / "run", [minimal(name) for name in names], rows))
    if chosen is None:
        with pytest.raises(ResultFolderError, match=", ".join(names)):
            robustness([run], wanted)
    else:
        assert f"norm of {chosen} " in robustness([run], wanted).x_label
