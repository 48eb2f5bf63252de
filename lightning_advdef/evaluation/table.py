"""Results as a table in the terminal, one column per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_advdef.evaluation.diagnostics.lines import count_line, spoken_lines
from lightning_advdef.evaluation.lines import CAPTION, comparison_lines
from lightning_advdef.evaluation.run import Result, read_runs


def comparison_table(results: Mapping[str, Result], seconds: Mapping[str, float] | None = None) -> Table:
    """A row per quantity, a column per run; see :func:`comparison_lines`."""
    table = Table(title=CAPTION, title_style="dim", show_lines=False)
    table.add_column("")
    table.add_column("access")
    for name in results:
        table.add_column(escape(name), justify="right")
    for line in comparison_lines(results, seconds):
        if line.section:
            table.add_section()
        cells = (f"  {line.title}" if line.detail else line.title, line.access, *line.cells)
        table.add_row(*map(escape, cells))
    return table


def print_results(folders: Sequence[str | Path], console: Console | None = None) -> None:
    """Prints the runs in ``folders`` side by side.

    Raises:
        ResultFolderError: If a folder holds no finished evaluation.
    """
    runs = read_runs(folders)
    results = {run.title: run.result for run in runs}
    seconds = {run.title: found for run in runs if (found := run.seconds_per_epoch()) is not None}
    places = [f"results: {run.folder}/robustness.json, a row per image: {run.folder}/robustness.npz" for run in runs]
    places.append(f"TensorBoard: tensorboard --logdir {runs[0].folder.parent}")
    print_table(results, seconds, places, console)


def print_table(
    results: Mapping[str, Result],
    seconds: Mapping[str, float] | None = None,
    places: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Prints results side by side, where they lie, and what makes them doubtful.

    Args:
        results: See :func:`comparison_table`.
        seconds: See :func:`comparison_table`.
        places: A line each, below the table.
        console: Where to; None for standard output.
    """
    console = console or Console()
    console.print(comparison_table(results, seconds))
    for place in places:
        console.print(place, markup=False, soft_wrap=True)
    for name, result in results.items():
        _print_diagnostics(console, name if len(results) > 1 else "", result.get("diagnostics", []))


def _print_diagnostics(console: Console, title: str, findings: Sequence[Mapping[str, Any]]) -> None:
    """One line, and what is raised below it; nothing of results that hold no diagnostics."""
    if not findings:
        return
    raised = spoken_lines(findings)
    style = "yellow" if raised else ""
    for line in [f"{title} {count_line(findings)}".lstrip(), *(f"  {line}" for line in raised)]:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
