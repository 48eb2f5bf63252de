"""Results as a table in the terminal, one column per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_advdef.evaluation.run import Result, read_runs


def percent(accuracy: Mapping[str, Any]) -> str:
    """An accuracy with its interval, e.g. ``93.4% [92.1, 94.5]``."""
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.2f}% [{100 * low:.1f}, {100 * high:.1f}]"


def comparison_table(results: Mapping[str, Result], seconds: Mapping[str, float] | None = None) -> Table:
    """A row per quantity, a column per run.

    Args:
        results: Result of each run, by the title of its column.
        seconds: Seconds per epoch of the trainings for which they are known, by the same titles.
    """
    title = "95% intervals; passes = forward + backward"
    table = Table(title=title, title_style="dim", show_lines=False)
    table.add_column("")
    table.add_column("access")
    for name in results:
        table.add_column(name, justify="right")
    runs = list(results.values())
    table.add_row("images", "", *(str(run["clean_accuracy"]["images"]) for run in runs))
    table.add_row("clean accuracy", "", *(percent(run["clean_accuracy"]) for run in runs))
    if any("every_draw" in run for run in runs):
        table.add_row("  right on every draw", "", *(_every_draw(run) for run in runs))
    if any("rejected" in run for run in runs):
        table.add_row("  rejected", "", *(percent(run["rejected"]) if "rejected" in run else "" for run in runs))
    if seconds:
        table.add_row("seconds per epoch", "", *(f"{seconds[name]:.2f}" if name in seconds else "" for name in results))
    for scenario in _names(runs):
        _add_scenario(table, scenario, [_find(run, scenario) for run in runs])
    table.add_section()
    for norm, eps in dict.fromkeys((case["norm"], case["eps"]) for run in runs for case in run["worst_case"]):
        cases = [[c for c in run["worst_case"] if (c["norm"], c["eps"]) == (norm, eps)] for run in runs]
        table.add_row(f"worst case, {norm} {eps:.4g}", "all", *(percent(c[0]["accuracy"]) if c else "" for c in cases))
    return table


def _number(value: float | None) -> str:
    """Four digits; a dash for a mean over no image."""
    return "-" if value is None else f"{value:.4f}"


def _names(runs: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(scenario["name"] for run in runs for scenario in run["scenarios"]))


def _find(run: Result, name: str) -> Mapping[str, Any] | None:
    return next((scenario for scenario in run["scenarios"] if scenario["name"] == name), None)


def _add_scenario(table: Table, name: str, found: Sequence[Mapping[str, Any] | None]) -> None:
    table.add_section()
    access = iter([next(scenario["access"] for scenario in found if scenario)])

    def row(title: str, show: Any) -> None:
        if any(scenario and show(scenario) for scenario in found):
            # how much the attacker knows stands in the first line alone
            table.add_row(title, next(access, ""), *(show(scenario) if scenario else "" for scenario in found))

    if any(scenario and "rho" in scenario for scenario in found):
        row(f"{name}: rho", lambda s: _number(s["rho"]) if "rho" in s else "")
        row("  rho, centred", lambda s: _number(s["rho_centred"]) if "rho_centred" in s else "")
        for images, convention in (("right images", "excluded"), ("wrong as 0", "included")):
            row(f"  mean | median, {images}", partial(_mean_and_median, convention))
        row("  share fooled", lambda s: f"{100 * s['share_fooled']:.1f}%" if "share_fooled" in s else "")
        row("  robust accuracy", lambda s: percent(s["robust_accuracy"]))
    else:
        row(name, lambda s: percent(s["robust_accuracy"]))
        row("  budget", lambda s: f"{s['norm']} {s['eps']:.4g}" if "eps" in s else "")
        row("  mean l2 norm", lambda s: _number(s["mean_l2"]) if "mean_l2" in s and "eps" not in s else "")
    row("  right on every draw", _every_draw)
    for part in dict.fromkeys(part["name"] for s in found if s for part in s.get("parts", [])):
        row(f"  after {part}", partial(_part, part))
    row("  rounded to 8 bits", lambda s: percent(s["rounded_accuracy"]) if "rounded_accuracy" in s else "")
    row("  rejected", lambda s: percent(s["rejected"]) if "rejected" in s else "")
    row("  right or rejected", lambda s: percent(s["right_or_rejected"]) if "rejected" in s else "")
    row("  passes", lambda s: f"{s['passes']['forward']:.1f} + {s['passes']['backward']:.1f}")


def _every_draw(summary: Mapping[str, Any]) -> str:
    """Worst draw of each image, and the standard deviation of a single draw's accuracy."""
    if "every_draw" not in summary:
        return ""
    return f"{percent(summary['every_draw'])}, one draw +-{100 * summary['draw_deviation']:.2f}"


def _mean_and_median(convention: str, scenario: Mapping[str, Any]) -> str:
    """Norms of a minimal-norm scenario; of another kind of the same name there are none."""
    if "norms" not in scenario:
        return ""
    mean, median = (_number(scenario["norms"][f"{kind}_{convention}"]) for kind in ("mean", "median"))
    return f"{mean} | {median} ({scenario['norm']})"


def _part(name: str, scenario: Mapping[str, Any]) -> str:
    """Accuracy after a part and those before it, and of the part alone where it had more than survivors to attack."""
    numbered = {part["name"]: (number, part) for number, part in enumerate(scenario.get("parts", []))}
    if name not in numbered:
        return ""
    number, part = numbered[name]
    after = f"{100 * part['cumulative_accuracy']['value']:.2f}%"
    if number == 0 or part["accuracy"] is None:
        return after
    return f"{after} ({100 * part['accuracy']['value']:.2f}% alone)"


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
        console.print(place, soft_wrap=True)
    for name, result in results.items():
        for warning in result.get("warnings", []):
            console.print(f"[yellow]{name}: {warning}[/]")
