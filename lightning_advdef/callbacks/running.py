"""Accuracies of the images judged so far, and TensorBoard's view of them while a test runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_advdef.evaluation.rows import Rows, robust

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunningAccuracies:
    """Means over the images of several batches.

    Args:
        scenarios: Names of the scenarios to count in.

    Attributes:
        images: Number of images so far.
    """

    def __init__(self, scenarios: Sequence[str]) -> None:
        self.images = 0
        self._clean = 0.0
        self._robust = dict.fromkeys(scenarios, 0.0)

    def add(self, rows: Rows) -> None:
        """Counts more images; they must not be among those before."""
        self.images += len(rows["index"])
        self._clean += float(rows["clean/correct"].sum())
        for name in self._robust:
            self._robust[name] += float(robust(rows, name).sum())

    @property
    def clean(self) -> float:
        """Clean accuracy in [0, 1]; there must be an image."""
        return self._clean / self.images

    @property
    def robust(self) -> dict[str, float]:
        """Robust accuracy in [0, 1] by name of the scenario; there must be an image."""
        return {name: right / self.images for name, right in self._robust.items()}


class RunningScalars:
    """Writes the accuracies so far to TensorBoard after each batch; the step is the number of images.

    Args:
        writer: Where to.
        scenarios: Names of the scenarios.
    """

    def __init__(self, writer: SummaryWriter, scenarios: Sequence[str]) -> None:
        self._writer = writer
        self._so_far = RunningAccuracies(scenarios)

    def judged(self, rows: Rows) -> None:
        """Some images were judged in every scenario."""
        self._so_far.add(rows)
        found = {f"robust_accuracy/{name}": value for name, value in self._so_far.robust.items()}
        for name, value in {"clean_accuracy": self._so_far.clean, **found}.items():
            self._writer.add_scalar(f"running/{name}", value, self._so_far.images)
        self._writer.flush()  # it would by itself only every two minutes
