"""How accuracy falls with the budget of an attack; nothing here draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.chart import Chart, Curve, Point
from lightning_advdef.evaluation.run import Result, Run
from lightning_advdef.metrics import Interval
from lightning_advdef.types import Norm

_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def accuracy_eps(runs: Sequence[Run], norm: Norm | None = None) -> Chart:
    """Accuracy against eps: a curve per run and attack that was run with several, and per run for all its attacks.

    Scenarios are one attack if all but eps is the same: its settings and its surrogate.

    Args:
        runs: Evaluated runs.
        norm: Of the budgets; None for the first of linf, l2 and l1 that has a curve.

    Raises:
        ResultFolderError: If no run has an attack with two budgets in that norm.
    """
    charts = budget_charts({run.title: run.result for run in runs})
    found = [chart for each, chart in charts.items() if norm in (None, each)]
    if not found:
        raise ResultFolderError(
            f"no attack was run with two budgets{f' in {norm}' if norm else ''}: give a scenario a list, such as "
            "eps: [2/255, 4/255]"
        )
    return found[0]


def budget_charts(results: Mapping[str, Result]) -> dict[Norm, Chart]:
    """Accuracy against eps, as :func:`accuracy_eps` has it, in each norm in which some attack had two budgets.

    Args:
        results: Summaries of evaluations under the names that tell them apart.
    """
    charts: dict[Norm, Chart] = {}
    for norm in _NORMS:
        named = {title: _curves(result, norm) for title, result in results.items()}
        curves = [
            replace(curve, label=f"{title}: {curve.label}") if len(results) > 1 else curve
            for title, found in named.items()
            for curve in found
        ]
        if curves:
            charts[norm] = _chart(curves, norm)
    return charts


def _chart(curves: Sequence[Curve], norm: Norm) -> Chart:
    label = f"{norm} budget of the attack (eps; pixels in [0, 1])"
    caption = "Bars: 95% intervals over images. At 0 stands the clean accuracy."
    return Chart(tuple(curves), label, "accuracy", "lines", caption)


def _curves(result: Result, norm: Norm) -> list[Curve]:
    attacks: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["scenarios"]:
        if row["norm"] == norm and "eps" in row:
            attacks.setdefault(_all_but_eps(row), []).append(row)
    named = {rows[0]["name"].partition("/eps")[0]: _points(rows) for rows in attacks.values()}
    if len(result["scenarios"]) > max(map(len, attacks.values()), default=0):  # else it is that attack's curve
        cases = [case for case in result["worst_case"] if case["norm"] == norm]
        named["worst case"] = [_point(case["eps"], case["accuracy"]) for case in cases]
    start = _point(0.0, result["clean_accuracy"])
    return [
        Curve(name, (start, *sorted(points, key=lambda point: point.x)))
        for name, points in named.items()
        if len({point.x for point in points}) > 1
    ]


def _all_but_eps(row: Mapping[str, Any]) -> str:
    return json.dumps(
        [_without_eps(row["attack"]), row.get("surrogate"), row.get("surrogate_settings")], sort_keys=True
    )


def _without_eps(settings: Any) -> Any:
    """Parts of a cascade have a budget each."""
    if not isinstance(settings, Mapping):
        return settings
    return {key: _without_eps(value) for key, value in settings.items() if key != "eps"}


def _points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [_point(row["eps"], row["robust_accuracy"]) for row in rows]


def _point(eps: float, accuracy: Mapping[str, Any]) -> Point:
    return Point(eps, accuracy["value"], f"eps {eps:.4g}", None, Interval(*accuracy["interval"]))
