"""What a figure shows, without how it is drawn: curves of points with their intervals."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_advdef.files import whole_file
from lightning_advdef.metrics import Interval


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Args:
        x: Norm, in pixel units.
        y: Accuracy in [0, 1].
        name: What it is: a run, a scenario, an epoch.
        x_interval: 95% interval of ``x``.
        y_interval: 95% interval of ``y``.
    """

    x: float
    y: float
    name: str = ""
    x_interval: Interval | None = None
    y_interval: Interval | None = None


@dataclass(frozen=True)
class Curve:
    """Points in the order in which a line joins them.

    Args:
        label: Name in the legend.
        points: At least one.
    """

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """Everything that a picture or a table needs.

    Args:
        curves: In the order of the legend.
        x_label: Title of the axis of norms, with the unit.
        y_label: Title of the axis of accuracies.
        form: ``fronts``: one panel with all curves and one for each, larger is better on both axes. ``steps``: each
            value holds up to the next. ``lines``: points joined by lines. ``paths``: the same, with the points' names.
        caption: What a reader must know to read it.
        notes: Findings, a sentence each.
    """

    curves: tuple[Curve, ...]
    x_label: str
    y_label: str
    form: Literal["fronts", "steps", "lines", "paths"]
    caption: str = ""
    notes: tuple[str, ...] = ()


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats on both axes (Pareto), larger being better, by ascending ``y``."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.x, -point.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def write_csv(chart: Chart, path: Path) -> None:
    """A row per point; ``x`` and ``y`` are the quantities that the chart's axes name."""
    with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "point", "x", "x_low", "x_high", "y", "y_low", "y_high"])
        for curve in chart.curves:
            for point in curve.points:
                x_ends, y_ends = point.x_interval or ("", ""), point.y_interval or ("", "")
                writer.writerow([curve.label, point.name, point.x, *x_ends, point.y, *y_ends])
