"""Progress of a purification that takes long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_advdef.defenses.ride.estimation import Estimation
from lightning_advdef.defenses.ride.purifier import RIDE, Watch
from lightning_advdef.messages import TERMINAL

_SECONDS_BEFORE = 2.0


@contextmanager
def progress(purifier: RIDE, images: int) -> Iterator[Watch]:
    """A bar over the rounds of all chunks, drawn when they take longer than a moment; yields what watches the steps."""
    chunks = -(-images // purifier.chunk)
    bar = Progress(
        TextColumn(f"purifying {images} images, rounds"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=TERMINAL,
        transient=True,
    )
    task = bar.add_task("rounds", total=chunks * purifier.rounds)
    begun, steps = time.monotonic(), 0

    def watch(estimation: Estimation) -> None:
        nonlocal steps
        steps += 1
        if steps % purifier.iterations == 0:
            bar.update(task, completed=steps // purifier.iterations)
        if not bar.live.is_started and time.monotonic() - begun > _SECONDS_BEFORE:
            bar.start()

    try:
        yield watch
    finally:
        bar.stop()
