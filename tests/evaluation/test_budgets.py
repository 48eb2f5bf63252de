"""Accuracy against eps."""

import pytest

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.budgets import accuracy_eps, budget_charts
from tests.evaluation.reporting.runs import bounded, evaluated, one


def test_budgets_of_one_attack_make_a_curve_that_begins_at_the_clean_accuracy(tmp_path):
    curves = accuracy_eps([one(evaluated(tmp_path / "run"))]).curves
    assert [curve.label for curve in curves] == ["bpda", "worst case"]
    assert [point.x for point in curves[0].points] == [0.0, 0.05, 0.1]
    assert [point.y for point in curves[0].points] == pytest.approx([0.8, 0.4, 0.2])
    assert curves[0].points[1].y_interval == (0.1, 0.9)


def test_several_runs_have_their_names_before_those_of_their_attacks(tmp_path):
    curves = accuracy_eps([one(evaluated(tmp_path / name)) for name in ("a", "b")]).curves
    assert [curve.label for curve in curves] == ["a: bpda", "a: worst case", "b: bpda", "b: worst case"]


def test_another_surrogate_is_another_attack(tmp_path):
    through = [bounded(f"white/eps{eps}", "white", eps, (True,) * 5) for eps in (0.2, 0.1)]
    curves = accuracy_eps([one(evaluated(tmp_path / "run", scenarios=through))]).curves
    assert [curve.label for curve in curves] == ["bpda", "white", "worst case"]
    assert [point.x for point in curves[1].points] == [0.0, 0.1, 0.2]


def test_one_budget_is_no_curve(tmp_path):
    run = one(evaluated(tmp_path / "run"))
    assert list(budget_charts({"run": run.result})) == ["linf"]
    with pytest.raises(ResultFolderError, match="no attack was run with two budgets in l2"):
        accuracy_eps([run], "l2")
