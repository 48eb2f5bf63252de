"""Reports as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_advdef.evaluation.diagnostics.lines import measured
from lightning_advdef.evaluation.lines import CAPTION, percent
from lightning_advdef.evaluation.reporting.content import Contrast, Finding, Model, Report

_COLUMNS = ("model", "quantity", "kind", "access", "norm", "eps", "accuracy", "low", "high", "images")
_COSTS = ("forward", "backward")


def to_csv(report: Report) -> str:
    """A row per model and accuracy: clean, each scenario, paper protocol, strong attack, and worst case.

    Accuracies are in [0, 1], ``low`` and ``high`` end their 95% interval; ``forward`` and ``backward`` are passes per
    image.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*_COLUMNS, *_COSTS])
    for model in report.models:
        writer.writerows([model.title, *row] for row in _rows(model))
    return file.getvalue()


def _rows(model: Model) -> list[list[Any]]:
    result = model.run.result
    rows = [["clean", "clean", "", "", "", *_accuracy(result["clean_accuracy"]), "", ""]]
    for s in result["scenarios"]:
        budget = [s["access"], s["norm"], s.get("eps", "")]
        passes = [s["passes"][kind] for kind in _COSTS]
        rows.append([s["name"], "scenario", *budget, *_accuracy(s["robust_accuracy"]), *passes])
    for c in model.contrasts:
        for name, found in (("paper protocol", c.paper), ("strong attack", c.knowing)):
            if found is not None:
                rows.append([name, "together", "", c.norm, c.eps, *_accuracy(found), "", ""])
    for case in result["worst_case"]:
        rows.append(["worst case", "together", "all", case["norm"], case["eps"], *_accuracy(case["accuracy"]), "", ""])
    return rows


def _accuracy(accuracy: Mapping[str, Any]) -> list[Any]:
    return [accuracy["value"], *accuracy["interval"], accuracy["images"]]


def to_markdown(report: Report) -> str:
    """Diagnostics that speak, paper protocol beside strong attack, the table of the terminal, and circumstances."""
    parts = ["# Robustness report", *_raised(report), "## Paper protocol and strong attack", _contrasts(report)]
    heads = ["", "access", *(model.title for model in report.models)]
    lines = [
        [f"&nbsp;&nbsp;{_escape(line.title)}" if line.detail else _escape(line.title), line.access, *line.cells]
        for line in report.lines
    ]
    parts += ["## All numbers", CAPTION + " per image.", _table(heads, lines), "## Circumstances"]
    for model in report.models:
        rows = [list(map(_escape, pair)) for pair in model.circumstances]
        parts += [f"### {_escape(model.title)}", _table(["", ""], rows)]
    return "\n\n".join(parts) + "\n"


def _raised(report: Report) -> list[str]:
    parts = []
    for model in report.models:
        parts += [_finding(model, finding) for finding in model.raised]
        if model.next_scenarios:
            parts.append(f"Run next, under `evaluation.scenarios`:\n\n```yaml\n{model.next_scenarios}\n```")
    return ["## Diagnostics", *parts] if parts else []


def _finding(model: Model, finding: Finding) -> str:
    where = f", {finding['scenario']}" if finding["scenario"] else ""
    head = f"**{_escape(model.title)}{_escape(where)}: {_escape(finding['name'])}**"
    return f"{head}: {_escape(finding['meaning'])} ({_escape(measured(finding))})"


def _contrasts(report: Report) -> str:
    heads = ["model", "budget", "clean", "paper protocol", "strong attack", "passes"]
    rows = []
    for model in report.models:
        clean = percent(model.run.result["clean_accuracy"])
        rows += [[_escape(model.title), *_budget(contrast, clean)] for contrast in model.contrasts]
    return _table(heads, rows)


def _budget(contrast: Contrast, clean: str) -> list[str]:
    accuracies = [percent(found) if found else "not run" for found in (contrast.paper, contrast.knowing)]
    return [f"{contrast.norm} {contrast.eps:.4g}", clean, *accuracies, f"{contrast.passes:,.0f}"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[_cell(_escape(head)) for head in heads], ["---"] * len(heads), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
