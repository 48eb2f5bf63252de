"""How a training moves between clean accuracy and robustness, from what it logged."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.chart import Chart, Curve, Point
from lightning_advdef.evaluation.curves import COUNTED
from lightning_advdef.evaluation.run import Run


def trajectory(runs: Sequence[Run], scenario: str | None = None) -> Chart:
    """Clean accuracy and mean norm on the validation images, epoch by epoch, a path per run.

    Reads what ``fit`` logs with ``evaluation.every_n_epochs``: ``val/mean_norm/<scenario>`` and ``val/clean_accuracy``.

    Args:
        runs: Trained runs; they need no evaluation.
        scenario: Name of the minimal-norm scenario that attacked the validation images.

    Raises:
        ValueError: If no scenario is named.
        ResultFolderError: If a training did not log these.
    """
    if scenario is None:
        raise ValueError("trajectory needs --scenario: the minimal-norm scenario that attacked the validation images")
    return Chart(
        tuple(Curve(run.title, _epochs(run, scenario)) for run in runs),
        f"mean norm of {scenario} (pixels in [0, 1]; {COUNTED['excluded']})",
        "clean accuracy",
        "paths",
        "Validation images; numbers are epochs.",
    )


def _epochs(run: Run, scenario: str) -> tuple[Point, ...]:
    norms = run.scalars(f"val/mean_norm/{scenario}")
    accuracies, epochs = run.scalars("val/clean_accuracy"), run.scalars("epoch")
    points: list[Point] = []
    for step, norm in norms.items():
        # step 0 is `advdef validate`; between attacked epochs the last norm is logged again
        if step > 0 and step in accuracies and not (points and points[-1].x == norm):
            points.append(Point(norm, accuracies[step], f"{epochs.get(step, 0) + 1:.0f}"))
    if not points:
        raise ResultFolderError(
            f"{run.folder} logged no val/mean_norm/{scenario}: train with that scenario and "
            "--evaluation.every_n_epochs 1"
        )
    return tuple(points)
