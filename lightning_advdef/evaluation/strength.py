"""How accuracy falls with the norm that attacks on one network spend; nothing here draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.chart import Chart, Curve, Point
from lightning_advdef.evaluation.curves import ordered
from lightning_advdef.evaluation.run import Run
from lightning_advdef.metrics import Interval, normal_interval

_Row = Mapping[str, Any]


def attack_strength(runs: Sequence[Run]) -> Chart:
    """Accuracy of one network against the mean l2 norm that an attack spends, a curve per attack.

    Scenarios of one kind of attack are points of one curve if their names differ after the last ``_`` only: a budget
    (``fgm_0.1``, ``fgm_0.5``), or the penalty that a generator was trained with.

    Source: "Adversarial training with perturbation generator networks", ICLR 2020 submission, Fig. 3.

    Args:
        runs: The one evaluated run.

    Raises:
        ValueError: If there are several.
        ResultFolderError: If it has no l2 scenario with a budget or of a generator, or one continues another.
    """
    if len(runs) != 1:
        raise ValueError(f"attack_strength shows the attacks on one network, got {len(runs)} folders: give one")
    (run,) = runs
    attacks: dict[tuple[str, str], list[_Row]] = {}
    for row in run.result["scenarios"]:
        if row["norm"] == "l2" and "norms" not in row:
            _refuse_continued(row)
            attacks.setdefault(_attack_of(row), []).append(row)
    if not attacks:
        raise ResultFolderError(f"{run.folder} has no l2 scenario with a budget or of a generator: run some first")
    clean = run.result["clean_accuracy"]
    start = Point(0.0, clean["value"], "clean", None, Interval(*clean["interval"]))
    return Chart(
        tuple(
            Curve(shared if len(rows) > 1 else rows[0]["name"], ordered([start, *(_spent(run, row) for row in rows)]))
            for (shared, _), rows in attacks.items()
        ),
        "mean l2 norm of the perturbations (pixels in [0, 1]; over all images)",
        "accuracy",
        "lines",
        "An equal mean favours attacks that choose each image's norm:\n"
        "they spend it where it pays and save it on images that hold or are lost anyway.",
    )


def _refuse_continued(row: _Row) -> None:
    if row.get("after") is not None:
        raise ResultFolderError(
            f"{row['name']} is not that attack alone, since it continues {row['after']} and keeps the smaller "
            "perturbations of the images broken there: in place of a list of eps give each a scenario of its own, "
            "such as fgm_0.5 and fgm_1"
        )


def _attack_of(row: _Row) -> tuple[str, str]:
    """What the names of its scenarios share, and its class, since suites share the beginning of a name, too."""
    name: str = row["name"]
    return name.rpartition("_")[0] or name, row["attack"]["class_path"]


def _spent(run: Run, row: _Row) -> Point:
    norms, accuracy = run.rows[f"{row['name']}/l2"].double(), row["robust_accuracy"]
    return Point(
        float(norms.mean()), accuracy["value"], row["name"], normal_interval(norms), Interval(*accuracy["interval"])
    )
