"""From results to the curves of a chart; nothing here draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.chart import Chart, Curve, Point
from lightning_advdef.evaluation.outside import compare_all
from lightning_advdef.evaluation.rows import Rows, robust
from lightning_advdef.evaluation.run import Run
from lightning_advdef.evaluation.store import first_difference
from lightning_advdef.metrics import Interval, accuracy_norm_curve, normal_interval
from lightning_advdef.types import Norm

Misclassified = Literal["excluded", "included"]
COUNTED: dict[Misclassified, str] = {
    "excluded": "images misclassified from the start left out",
    "included": "images misclassified from the start count as 0",
}


def robustness(runs: Sequence[Run], scenario: str | None = None, misclassified: Misclassified = "excluded") -> Chart:
    """Robustness curve: clean accuracy against the mean norm of the smallest perturbations, a point per trained model.

    Source: "Adversarial training with perturbation generator networks", ICLR 2020 submission, Eq. 6 and the
    robustness curves; there misclassified images are included.

    Args:
        runs: Evaluated runs; those of one method make a curve, by ascending norm.
        scenario: A minimal-norm scenario that all of them have, see :func:`minimal_norm_scenario`.
        misclassified: Whether images that are misclassified from the start are left out of the mean or count as 0.
    """
    name = minimal_norm_scenario(runs, scenario)
    methods = dict.fromkeys(run.method for run in runs)
    curves = tuple(
        Curve(method, ordered([_trained(run, name, misclassified) for run in runs if run.method == method]))
        for method in methods
    )
    widest = max((p.x_interval.high - p.x for c in curves for p in c.points if p.x_interval), default=0.0)
    noise = f"95% intervals over images are up to ±{widest:.3f} in norm; the spread over seeds is not in them"
    return Chart(
        curves,
        f"mean {_norm_of(runs[0], name)} norm of {name} (pixels in [0, 1]; {COUNTED[misclassified]})",
        "clean accuracy",
        "fronts",
        "Filled: no other run is better in both. Bars: 95% intervals over images.",
        (*compare_all(curves), noise),
    )


def accuracy_norm(runs: Sequence[Run], scenario: str | None = None) -> Chart:
    """Accuracy against the norm of the perturbation: images that the attack has not fooled within it, a curve per run.

    Args:
        runs: Evaluated runs; a fair comparison has runs of equal clean accuracy.
        scenario: A minimal-norm scenario that all of them have, see :func:`minimal_norm_scenario`.
    """
    name = minimal_norm_scenario(runs, scenario)
    norm = _norm_of(runs[0], name)
    curves = tuple(norm_curve(run.title, run.rows, name, norm) for run in runs)
    return norm_chart(curves, f"{norm} norm of the perturbation by {name}")


def norm_curve(label: str, rows: Rows, scenario: str, norm: Norm) -> Curve:
    """Share of images not fooled within each norm; an image that is wrong without an attack is fooled at norm 0."""
    broken = robust(rows, scenario) < 1
    norms = torch.where(rows["clean/correct"] < 1, 0.0, rows[f"{scenario}/{norm}"])
    radii, share = accuracy_norm_curve(norms, broken)
    return Curve(label, tuple(Point(x, y) for x, y in zip(radii.tolist(), share.tolist(), strict=True)))


def norm_chart(curves: tuple[Curve, ...], what: str) -> Chart:
    """Curves of accuracy against norm, with the norm at which each falls to one half."""
    return Chart(curves, f"{what} (pixels in [0, 1])", "accuracy", "steps", notes=tuple(map(_half, curves)))


def _half(curve: Curve) -> str:
    lost = next((point.x for point in curve.points if point.y <= 0.5), None)
    end = "more than half of all never lost" if lost is None else f"half of all lost at norm {lost:.3f}"
    return f"{curve.label}: {100 * curve.points[0].y:.2f}% of the images right without a perturbation, {end}"


def minimal_norm_scenario(runs: Sequence[Run], wanted: str | None = None) -> str:
    """The minimal-norm scenario to compare runs by.

    Args:
        runs: Evaluated runs.
        wanted: Its name; None for the only one that all runs have, or the first of them with ``cw`` in its name.

    Raises:
        ResultFolderError: If a run lacks it, none can be chosen, or the runs' attacks are not the same.
    """
    name = _shared_scenario(runs, wanted)
    _require_same_attack(runs, name)
    return name


def _shared_scenario(runs: Sequence[Run], wanted: str | None) -> str:
    minimal: list[list[str]] = [[s["name"] for s in run.result["scenarios"] if "norms" in s] for run in runs]
    shared = [name for name in minimal[0] if all(name in names for names in minimal)]
    chosen = [name for name in shared if wanted in (None, name)]
    if len(chosen) == 1:
        return chosen[0]
    preferred = [name for name in chosen if "cw" in name]
    if preferred:
        return preferred[0]
    raise ResultFolderError(
        f"no minimal-norm scenario to compare by: --scenario is {wanted or 'not given'}, and what all {len(runs)} "
        f"folders have is {', '.join(shared) or 'none'}"
    )


def _require_same_attack(runs: Sequence[Run], name: str) -> None:
    """What it was run through, such as a network that images are transferred from, may differ."""
    for run in runs[1:]:
        found = first_difference(_attack_of(run, name), _attack_of(runs[0], name))
        if found:
            raise ResultFolderError(
                f"{name} is not the same in {run.folder} as in {runs[0].folder} ({found}): evaluate both alike, or "
                "choose another --scenario"
            )


def _attack_of(run: Run, name: str) -> dict[str, Any]:
    found = run.scenario(name)
    assert found is not None
    return {"norm": found["norm"], "attack": found["attack"], "images": found["robust_accuracy"]["images"]}


def counted_norms(rows: Rows, scenario: str, norm: Norm, misclassified: Misclassified) -> Tensor:
    """Norms that enter the mean, shape ``(M,)``: of images that the attack broke, as in ``metrics.norm_summary``."""
    right = rows["clean/prediction"] == rows["label"]
    broken = right & (rows[f"{scenario}/prediction"] != rows["label"])
    norms = rows[f"{scenario}/{norm}"].double()
    return norms[broken] if misclassified == "excluded" else torch.where(right, norms, 0.0)[broken | ~right]


def _trained(run: Run, scenario: str, misclassified: Misclassified) -> Point:
    norms = counted_norms(run.rows, scenario, _norm_of(run, scenario), misclassified)
    if not len(norms):
        raise ResultFolderError(
            f"{scenario} broke no image of {run.folder}, so there is no norm to show: attack harder"
        )
    clean = run.result["clean_accuracy"]
    interval = normal_interval(norms)
    return Point(float(norms.mean()), clean["value"], run.title, interval, Interval(*clean["interval"]))


def _norm_of(run: Run, scenario: str) -> Norm:
    norm: Norm = _attack_of(run, scenario)["norm"]
    return norm


def ordered(points: Sequence[Point]) -> tuple[Point, ...]:
    """By ascending norm, of equal ones the most accurate first."""
    return tuple(sorted(points, key=lambda point: (point.x, -point.y)))
