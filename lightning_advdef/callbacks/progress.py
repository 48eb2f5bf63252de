"""Progress of the attacks in the terminal: images, robust accuracy so far, time left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from lightning_advdef.evaluation.rows import Rows, robust
from lightning_advdef.messages import TERMINAL


class _Bar(Progress):
    """A bar with a text below, which may be longer than a line."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, style="dim")


class RobustSoFar:
    """Robust accuracies of the images of several batches.

    Args:
        scenarios: Names of the scenarios to count in.

    Attributes:
        images: Number of images so far.
    """

    def __init__(self, scenarios: Sequence[str]) -> None:
        self.images = 0
        self._right = dict.fromkeys(scenarios, 0.0)

    def add(self, rows: Rows) -> None:
        """Counts more images; they must not be among those before."""
        self.images += len(rows["index"])
        for name in self._right:
            self._right[name] += float(robust(rows, name).sum())

    def accuracies(self) -> dict[str, float]:
        """Robust accuracy in [0, 1] by name of the scenario; there must be an image."""
        return {name: right / self.images for name, right in self._right.items()}


class AttackProgress:
    """A bar over the images, with the robust accuracy of each scenario so far below it.

    Args:
        images: Images to judge; None if unknown.
        scenarios: Names of the scenarios that have a robust accuracy.
        console: Where to draw; the terminal's stderr unless given.
    """

    def __init__(self, images: int | None, scenarios: Sequence[str], console: Console | None = None) -> None:
        self.so_far = RobustSoFar(scenarios)
        self.bar = _Bar(
            TextColumn("attacking"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or TERMINAL,
            transient=True,
        )
        self.task = self.bar.add_task("attacking", total=images)
        self.bar.start()

    def judged(self, rows: Rows) -> None:
        """Some images were judged in every scenario."""
        self.so_far.add(rows)
        found = [f"{name} {100 * accuracy:.1f}%" for name, accuracy in self.so_far.accuracies().items()]
        self.bar.below = "robust so far: " + "  ".join(found) if found else ""
        self.bar.update(self.task, completed=self.so_far.images)

    def close(self) -> None:
        """Gives the terminal back."""
        self.bar.stop()
