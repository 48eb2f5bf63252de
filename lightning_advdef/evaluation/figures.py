"""Draws charts and images; what they show is decided in the functions that make them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from lightning_advdef.evaluation.chart import Chart, Curve, front, write_csv
from lightning_advdef.evaluation.examples import Examples
from lightning_advdef.files import whole_file

# told apart by the colour-blind, Okabe and Ito, https://jfly.uni-koeln.de/color/
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_GREY = "#c4c4c4"
_PICTURES = (".png", ".svg", ".pdf")
_LETTERS, _HANDLE = 10, 7  # of a legend: letters to an inch, and how many the sign of a curve takes
_AS_WRITTEN: dict[Any, Any] = {"text.parse_math": False}  # a name may hold dollar signs
_NAMED = 6  # points of a path that bear their names, so that these stay readable


def save(shown: Chart | Sequence[Examples], path: Path) -> None:
    """Writes a picture (``.png``, ``.svg``, ``.pdf``), or the points of a chart (``.csv``).

    Raises:
        ValueError: If the name ends otherwise.
    """
    if path.suffix == ".csv" and isinstance(shown, Chart):
        write_csv(shown, path)
    elif path.suffix in _PICTURES:
        figure = draw(shown) if isinstance(shown, Chart) else image_grid(shown)
        with whole_file(path) as unfinished:
            figure.savefig(unfinished, dpi=160, format=path.suffix.removeprefix("."))
    else:
        raise ValueError(f"figures are written to {', '.join(_PICTURES)}, and points of curves to .csv, got {path}")


@rc_context(_AS_WRITTEN)
def draw(chart: Chart) -> Figure:
    """The chart in the form that it asks for."""
    return _fronts(chart) if chart.form == "fronts" and len(chart.curves) > 1 else _single(chart)


def _single(chart: Chart) -> Figure:
    figure = Figure(figsize=(6.8, 4.8), layout="constrained")
    axis = figure.subplots()
    lines = _all_curves(axis, chart)
    axis.set(xlabel=chart.x_label, ylabel=chart.y_label)
    if chart.caption:
        figure.supxlabel(chart.caption, fontsize="small", color="#555555")
    _legend(figure, lines, chart)
    return figure


def _fronts(chart: Chart) -> Figure:
    """One large panel with all curves, and a small one for each with the others in grey behind it."""
    columns = math.ceil(len(chart.curves) / 2)
    figure = Figure(figsize=(5.6 + 2.5 * columns, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, columns + 2, width_ratios=[1.4, 1.4, *[1.25] * columns])
    overview = figure.add_subplot(grid[:, :2])
    lines = _all_curves(overview, chart)
    overview.set(ylabel=chart.y_label)
    figure.supxlabel(_labelled(chart), fontsize="medium")
    for number, curve in enumerate(chart.curves):
        row, column = divmod(number, columns)
        axis = figure.add_subplot(grid[row, column + 2], sharex=overview, sharey=overview)
        _style(axis)
        for other in chart.curves:
            axis.plot(*_coordinates(other), color=_GREY, marker=".", linewidth=1)
        _draw_curve(axis, chart, number)
        axis.set_title(curve.label, color=_COLORS[number % len(_COLORS)], fontsize="medium", fontweight="bold")
        below = number + columns < len(chart.curves)
        axis.tick_params(labelbottom=not below, labelleft=column == 0, labelsize="small")
    _legend(figure, lines, chart)
    return figure


def _labelled(chart: Chart) -> str:
    return f"{chart.x_label}\n{chart.caption}" if chart.caption else chart.x_label


def _legend(figure: Figure, lines: Sequence[Line2D], chart: Chart) -> None:
    """Labels above the panels, where no curve runs, in as many columns as fit."""
    if len(chart.curves) > 1:
        longest = max(len(curve.label) for curve in chart.curves)
        columns = int(figure.get_figwidth() * _LETTERS / (longest + _HANDLE))
        legend = figure.legend(
            lines,
            [""] * len(lines),
            loc="outside upper center",
            ncols=max(1, min(columns, len(chart.curves))),
            frameon=False,
        )
        # afterwards, since some versions of matplotlib leave out a label that begins with an underscore
        for text, curve in zip(legend.get_texts(), chart.curves, strict=True):
            text.set_text(curve.label)


def _all_curves(axis: Axes, chart: Chart) -> list[Line2D]:
    """The line of each curve."""
    _style(axis)
    lines = [_draw_curve(axis, chart, number) for number in range(len(chart.curves))]
    if chart.form in ("steps", "lines"):
        axis.set(xlim=(0, None), ylim=(0, None if chart.form == "lines" else 1.02))
    return lines


def _style(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_curve(axis: Axes, chart: Chart, number: int) -> Line2D:
    curve, color = chart.curves[number], _COLORS[number % len(_COLORS)]
    line: dict[str, Any] = {"color": color, "label": curve.label, "linewidth": 1.6}
    if chart.form == "steps":
        return axis.step(*_coordinates(curve), where="post", **line)[0]
    _error_bars(axis, curve, color)
    marker = _MARKERS[number % len(_MARKERS)]
    size = 3 if chart.form == "paths" else 5
    (drawn,) = axis.plot(*_coordinates(curve), marker=marker, markersize=size, **line)
    if chart.form == "fronts":
        beaten = _beaten(curve, chart)
        axis.plot(*_coordinates(beaten), marker, color=color, markerfacecolor="white", markersize=5)
    if chart.form == "paths":
        _name_points(axis, curve, color)
    return drawn


def _beaten(curve: Curve, chart: Chart) -> Curve:
    """Points of a curve that a point of any curve beats on both axes."""
    best = set(map(id, front([point for each in chart.curves for point in each.points])))
    return Curve(curve.label, tuple(point for point in curve.points if id(point) not in best))


def _error_bars(axis: Axes, curve: Curve, color: str) -> None:
    for point in curve.points:
        bars: dict[str, Any] = {"color": color, "alpha": 0.3, "linewidth": 1.2, "zorder": 1}
        if point.x_interval and math.isfinite(point.x_interval.low):
            axis.plot(point.x_interval, [point.y, point.y], **bars)
        if point.y_interval:
            axis.plot([point.x, point.x], point.y_interval, **bars)


def _name_points(axis: Axes, curve: Curve, color: str) -> None:
    """Names of the first, the last and some points between, evenly apart."""
    last = len(curve.points) - 1
    named = {round(last * part / (_NAMED - 1)) for part in range(_NAMED)}
    text: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points", "color": color, "fontsize": "small"}
    for point in (curve.points[number] for number in sorted(named)):
        axis.annotate(point.name, (point.x, point.y), **text)


def _coordinates(curve: Curve) -> tuple[list[float], list[float]]:
    return [point.x for point in curve.points], [point.y for point in curve.points]


@rc_context(_AS_WRITTEN)
def image_grid(examples: Sequence[Examples]) -> Figure:
    """Rows clean, adversarial and difference for each scenario; a column per image.

    Above an adversarial image stand its label, the predictions before and after, and the perturbation's l2 norm in
    pixel units. The difference is scaled so that its largest value is white, its negative black, no change grey.
    """
    columns = max(len(each.clean) for each in examples)
    figure = Figure(figsize=(1.25 * columns + 0.8, 4.9 * len(examples)), layout="constrained")
    parts = figure.subfigures(len(examples), 1, squeeze=False)[:, 0]
    for part, each in zip(parts, examples, strict=True):
        _image_rows(part, each, columns)
    return figure


def _image_rows(figure: SubFigure, examples: Examples, columns: int) -> None:
    difference = examples.adversarial - examples.clean
    scale = difference.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    rows = (examples.clean, examples.adversarial.clamp(0, 1), difference / scale / 2 + 0.5)
    figure.suptitle(examples.title, fontsize="medium")
    axes = figure.subplots(3, 1)
    for axis, title, pictures in zip(axes, ("clean", "adversarial", "difference"), rows, strict=True):
        axis.axis("off")
        axis.imshow(_strip(pictures, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.text(-0.12 / columns, 0.5, title, rotation=90, ha="right", va="center", transform=axis.transAxes)
    for number, (classes, norm) in enumerate(
        zip(examples.classes.tolist(), difference.flatten(1).norm(dim=1), strict=True)
    ):
        text = "{}: {} → {}\n".format(*classes) + f"l2 {norm:.3g}"
        place: dict[str, Any] = {"ha": "center", "va": "bottom", "transform": axes[1].transAxes}
        axes[1].text((number + 0.5) / columns, 1.02, text, fontsize=8, **place)


def _strip(pictures: Tensor, columns: int) -> NDArray[np.float32]:
    """Images side by side on white, each in the middle of its column; one axis for all is drawn much faster.

    Args:
        pictures: Pixels in [0, 1], shape ``(N, C, H, W)``.
        columns: At least N.

    Returns:
        Shape ``(H, columns * width of a column)``, with a last dimension of 3 if C is 3, else grey, the mean of C.
    """
    if pictures.shape[1] not in (1, 3):  # no colours that anybody knows
        pictures = pictures.mean(dim=1, keepdim=True)
    margin = max(1, pictures.shape[-1] // 16)
    padded = pad(pictures, (margin, margin), value=1.0)
    missing = padded.new_ones(columns - len(padded), *padded.shape[1:])
    strip: NDArray[np.float32] = torch.cat([padded, missing]).permute(2, 0, 3, 1).flatten(1, 2).squeeze(-1).numpy()
    return strip
