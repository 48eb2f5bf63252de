"""Progress of the attacks in the terminal: images, robust accuracy so far, time left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_advdef.evaluation.judge import Rows
from lightning_advdef.evaluation.summary import robust


class AttackProgress:
    """A bar over the loader's batches with the robust accuracy of each scenario so far.

    Args:
        batches: Batches that the loader will give.
        scenarios: Names of the scenarios.
    """

    def __init__(self, batches: float, scenarios: Sequence[str]) -> None:
        self.scenarios = scenarios
        self.right = dict.fromkeys(scenarios, 0.0)
        self.images = 0
        self.progress = Progress(
            TextColumn("attacking"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[found]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("attacking", total=batches, found="")
        self.progress.start()

    def loaded(self) -> None:
        """One more batch came from the loader."""
        self.progress.advance(self.task)

    def judged(self, rows: Rows) -> None:
        """Some images were judged in every scenario."""
        self.images += len(rows["index"])
        for name in self.scenarios:
            self.right[name] += float(robust(rows, name).sum())
        found = "  ".join(f"{name} {100 * self.right[name] / self.images:.1f}%" for name in self.scenarios)
        self.progress.update(self.task, found=f"{self.images} images: {found}")

    def close(self) -> None:
        """Gives the terminal back."""
        self.progress.stop()
