"""``advdef report``: some runs as a table in the terminal, as a report in a file, or as a figure."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_advdef.evaluation.reporting.files import write_reports
from lightning_advdef.evaluation.run import read_runs
from lightning_advdef.evaluation.table import print_results

if TYPE_CHECKING:
    from lightning_advdef.evaluation.chart import Chart
    from lightning_advdef.evaluation.examples import Examples

# the module in which a function of that name makes it, imported when asked for: the table starts faster without
FIGURES = {
    "robustness": "curves",
    "accuracy_eps": "budgets",
    "accuracy_norm": "curves",
    "attack_strength": "strength",
    "trajectory": "trajectory",
    "images": "examples",
}
_OPTIONS = ("scenario", "norm", "misclassified")
_HELP = """reports: -o report.html (one file that opens from disk: diagnostics, curves, images, every image), report.md,
report.csv, or record.json, the record of one run in RobustBench's format

figures:
  robustness       clean accuracy against the mean norm of a minimal-norm scenario: a point per folder, a line per
                   method (the folder that holds it, or its LABEL), and which line lies outside which
  accuracy_eps     accuracy against eps: a line per attack that was run with several, and for their worst case
  accuracy_norm    accuracy against the norm of a minimal-norm scenario: a line per folder
  attack_strength  accuracy against the mean l2 norm that attacks on one network spend: a line per attack
  trajectory       clean accuracy and mean norm after each epoch of a training: a line per folder
  images           clean and adversarial images and their difference: the first that
                   `advdef predict --evaluation.write SCENARIO` wrote

examples: advdef report runs/standard_digits runs/deep_defense_digits -o report.html
          advdef report runs/curve/*/* --figure robustness -o curve.png -o curve.csv"""


def parser() -> argparse.ArgumentParser:
    """The command line of ``advdef report``."""
    made = argparse.ArgumentParser(
        prog="advdef report",
        description="The results of one or several runs side by side, with -o as a report in a file; with --figure, a "
        "figure of them.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER", help="run folders, e.g. runs/standard_digits")
    made.add_argument("--figure", choices=list(FIGURES), help="draw this instead of printing the table")
    made.add_argument(
        "-o",
        "--output",
        action="append",
        type=Path,
        metavar="FILE",
        help="where to, may be repeated; reports: .html, .md, .csv, or .json; figures: .png, .svg, .pdf, or .csv for "
        "the points (default: FIGURE.png)",
    )
    made.add_argument(
        "--scenario",
        help="minimal-norm scenario, by default the only one, or the first with cw in its name; for images any",
    )
    made.add_argument("--norm", choices=["linf", "l2", "l1"], help="accuracy_eps: of the budgets")
    made.add_argument(
        "--misclassified",
        choices=["excluded", "included"],
        help="robustness: images wrong without an attack are left out of the mean (default), or count as norm 0",
    )
    return made


def main(arguments: Sequence[str]) -> None:
    """Prints the table, or writes a report, or a figure and prints what it shows.

    Raises:
        ValueError: If an option does not go with the others.
    """
    settings = parser().parse_args(arguments)
    given = {name: getattr(settings, name) for name in _OPTIONS if getattr(settings, name)}
    if settings.figure is None:
        if given:
            raise ValueError(f"--{next(iter(given))} belongs to figures: name a --figure, too")
        if settings.output:
            write_reports(read_runs(settings.folders), settings.output)
        else:
            print_results(settings.folders)
        return
    make: Any = getattr(import_module(f"lightning_advdef.evaluation.{FIGURES[settings.figure]}"), settings.figure)
    for name in given.keys() - inspect.signature(make).parameters.keys():
        raise ValueError(f"--{name} has no meaning for --figure {settings.figure}: leave it out")
    shown = make(read_runs(settings.folders), **given)
    _write(shown, settings.output or [Path(f"{settings.figure}.png")])


def _write(shown: Chart | Sequence[Examples], paths: Sequence[Path]) -> None:
    from lightning_advdef.evaluation.chart import Chart
    from lightning_advdef.evaluation.figures import save

    console = Console()
    if isinstance(shown, Chart):
        if shown.form != "steps":
            console.print(points_table(shown))
        for note in shown.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    for path in paths:
        save(shown, path)
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def points_table(chart: Chart) -> Table:
    """A row per point."""
    table = Table(title=escape(chart.x_label), title_style="dim")
    for title in ("", "", "norm", "95% interval", chart.y_label, "95% interval"):
        table.add_column(title, justify="right" if title else "left")
    for curve in chart.curves:
        table.add_section()
        for point in curve.points:
            x = "" if point.x_interval is None else "[{:.4f}, {:.4f}]".format(*point.x_interval)
            y = "" if point.y_interval is None else "[{:.1f}, {:.1f}]".format(*(100 * end for end in point.y_interval))
            cells = (curve.label, point.name, f"{point.x:.4f}", x, f"{100 * point.y:.2f}%", y)
            table.add_row(*map(escape, cells))
    return table
