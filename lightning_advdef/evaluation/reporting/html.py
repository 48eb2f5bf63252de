"""A report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.budgets import budget_charts
from lightning_advdef.evaluation.chart import Chart
from lightning_advdef.evaluation.curves import accuracy_norm, robustness
from lightning_advdef.evaluation.diagnostics.lines import count_line
from lightning_advdef.evaluation.lines import CAPTION, percent
from lightning_advdef.evaluation.reporting.content import Report
from lightning_advdef.evaluation.reporting.graphics import gallery_rows, svg
from lightning_advdef.evaluation.reporting.images_table import LARGEST, images_json
from lightning_advdef.evaluation.run import Run


class Drawing(NamedTuple):
    """A chart in the page.

    Attributes:
        title: Above it.
        svg: The drawing.
        notes: What it shows, a sentence each.
    """

    title: str
    svg: Markup
    notes: tuple[str, ...]


def to_html(report: Report) -> str:
    """The page: diagnostics that speak, headline numbers, all numbers, curves, pictures, every image, circumstances."""
    environment = Environment(
        loader=PackageLoader("lightning_advdef.evaluation.reporting"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": percent, "counts": count_line}
    runs = [model.run for model in report.models]
    drawn, missing = drawings(runs)
    return environment.get_template("page.html").render(
        report=report,
        caption=CAPTION,
        drawings=drawn,
        missing=missing,
        galleries={model.title: gallery_rows(model.run) for model in report.models},
        images=Markup(images_json(runs)),
        largest=LARGEST,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("lightning-advdef"),
    )


def drawings(runs: Sequence[Run]) -> tuple[list[Drawing], list[str]]:
    """Every curve that the runs have points for, and why others are missing."""
    budgets = budget_charts({run.title: run.result for run in runs})
    charts = [(f"Accuracy against eps, {norm}", chart) for norm, chart in budgets.items()]
    missing = []
    for title, make, having, name in _minimal_norm_charts(runs):
        try:
            charts.append((title, make(having, name)))
        except ResultFolderError as error:
            missing.append(f"{title} is not drawn: {error}")
    drawn = [
        Drawing(title, Markup(svg(chart, number)), chart.notes)  # drawn by matplotlib, which escapes names
        for number, (title, chart) in enumerate(charts)
    ]
    return drawn, missing


def _minimal_norm_charts(runs: Sequence[Run]) -> Iterator[tuple[str, Callable[..., Chart], list[Run], str]]:
    for name in dict.fromkeys(s["name"] for run in runs for s in run.result["scenarios"] if "norms" in s):
        having = [run for run in runs if "norms" in (run.scenario(name) or {})]
        yield f"Accuracy against the norm of {name}", accuracy_norm, having, name
        if len(having) > 1:
            yield f"Robustness curve over models, {name}", robustness, having, name
