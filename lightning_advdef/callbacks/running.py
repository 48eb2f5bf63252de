"""What TensorBoard shows while a test runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lightning_advdef.callbacks.pictures import figures, headline
from lightning_advdef.evaluation.examples import examples_of
from lightning_advdef.evaluation.gallery import Gallery
from lightning_advdef.evaluation.judge import Judge
from lightning_advdef.evaluation.rows import Rows
from lightning_advdef.evaluation.store import join_rows
from lightning_advdef.evaluation.summary import summarise

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIRST_PICTURES = 30.0  # seconds


class RunningView:
    """What TensorBoard shows of the images judged so far; the step is their number.

    Headline numbers after each batch; curves and examples after half a minute and whenever the time has doubled since,
    so that a short test draws none and a long one only a few.

    Args:
        writer: Where to.
        judge: What judges the images.
        gallery: Where it keeps some of them.
    """

    def __init__(self, writer: SummaryWriter, judge: Judge, gallery: Gallery) -> None:
        self._writer, self._judge, self._gallery = writer, judge, gallery
        self._described = judge.describe()
        self._rows: list[Rows] = []
        self._began, self._due = time.perf_counter(), FIRST_PICTURES

    def judged(self, rows: Rows) -> None:
        """Some images were judged in every scenario; they must not be among those before."""
        so_far = join_rows([*self._rows, rows])
        self._rows = [so_far]
        scenarios, draws, images = self._judge.scenarios, self._judge.settings.draws, len(so_far["index"])
        summary = summarise(so_far, scenarios, self._described, draws)
        for name, value in headline(summary).items():
            self._writer.add_scalar(f"running/{name}", value, images)
        if time.perf_counter() - self._began >= self._due:
            examples = examples_of(self._gallery.holding(so_far), so_far)
            for name, figure in figures(so_far, summary, scenarios, examples).items():
                self._writer.add_figure(f"running/{name}", figure, images)
            self._due = 2 * (time.perf_counter() - self._began)
        self._writer.flush()  # it would by itself only every two minutes
