"""A run folder, read when asked: result, rows and the scalars that training logged."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.rows import Rows, read_rows
from lightning_advdef.evaluation.store import read_json

Result = Mapping[str, Any]
_STATED = ("clean_accuracy", "scenarios", "worst_case")


@dataclass(frozen=True)
class Run:
    """A run folder under the names that tables and figures give it.

    Args:
        title: Name of this run alone: its label, or its folder's name.
        method: Name that runs of one sweep share: its label, or the name of the folder that holds it.
        folder: Where it lies.
    """

    title: str
    method: str
    folder: Path

    @cached_property
    def result(self) -> Result:
        """Content of ``robustness.json``.

        Raises:
            ResultFolderError: If the folder holds no finished evaluation, or the file is damaged.
        """
        self._require_finished()
        return read_json(self.folder / "robustness.json", _STATED)

    @cached_property
    def rows(self) -> Rows:
        """Columns of ``robustness.npz``, a row per image.

        Raises:
            ResultFolderError: If the folder holds no finished evaluation, or the file is missing or damaged.
        """
        self._require_finished()
        return read_rows(self.folder / "robustness.npz")

    def _require_finished(self) -> None:
        if not (self.folder / "robustness.json").is_file():
            raise ResultFolderError(
                f"no finished evaluation in {self.folder} (no robustness.json): run advdef test first"
            )

    @cached_property
    def _events(self) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        # 0 keeps every scalar; otherwise long trainings are thinned out at random
        events = EventAccumulator(str(self.folder), size_guidance={"scalars": 0})
        events.Reload()
        return events

    def scalars(self, tag: str) -> dict[int, float]:
        """What training logged under a tag, by step, NaN left out; empty where there is none.

        A step that was logged twice, by a training that was continued, has its last value.
        """
        if not any(self.folder.glob("events.out.tfevents.*")) or tag not in self._events.Tags()["scalars"]:
            return {}
        logged = sorted(self._events.Scalars(tag), key=lambda event: event.wall_time)
        found = {event.step: event.value for event in logged if not math.isnan(event.value)}
        return dict(sorted(found.items()))

    def seconds_per_epoch(self) -> float | None:
        """Median over the epochs of its training; None where that was not logged."""
        seconds = self.scalars("train/seconds_per_epoch")
        return median(seconds.values()) if seconds else None

    def scenario(self, name: str) -> Mapping[str, Any] | None:
        """Summary of a scenario; None if it was not run."""
        return next((scenario for scenario in self.result["scenarios"] if scenario["name"] == name), None)


def read_runs(items: Sequence[str | Path]) -> list[Run]:
    """Run folders, each as ``FOLDER`` or ``LABEL=FOLDER``.

    Runs of one name are told apart by their whole path. A folder that is given twice under one name is taken once.
    """
    pairs = _once([_split(str(item)) for item in items])
    names = [label or _name(folder) for label, folder in pairs]
    paths = [str(folder) for _, folder in pairs]
    # a folder under two labels, as the start of two curves, has one path
    labelled = [f"{label}={folder}" if label else str(folder) for label, folder in pairs]
    titles = next(each for each in (names, paths, labelled) if len(set(each)) == len(each))
    return [
        Run(title, label or folder.resolve().parent.name, folder)
        for (label, folder), title in zip(pairs, titles, strict=True)
    ]


def _once(pairs: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    found: dict[tuple[str, Path], tuple[str, Path]] = {}
    for label, folder in pairs:
        found.setdefault((label or _name(folder), folder.resolve()), (label, folder))
    return list(found.values())


def _name(folder: Path) -> str:
    """Its own name, of ``.`` too; that of a link is the link's."""
    return Path(os.path.abspath(folder)).name


def _split(item: str) -> tuple[str, Path]:
    """Label, empty if none is given, and folder; a folder's own name may have the sign, too."""
    label, sign, folder = item.partition("=")
    return (label, Path(folder)) if sign and not Path(item).exists() else ("", Path(item))
