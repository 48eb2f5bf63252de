"""A training that a scheduler starts again within one job goes on where it was.

SLURM starts the very same command once more: after the signal that Lightning answers with a checkpoint and
``scontrol requeue``, or by itself when a node has died.
"""

from __future__ import annotations

import os
from pathlib import Path

_JOB = "SLURM_JOB_ID"
_MARKER = "slurm_job"


def note_job(folder: Path) -> None:
    """Marks a run folder as that of the training of this job, if it is one of SLURM's."""
    if _JOB in os.environ:
        (folder / _MARKER).write_text(os.environ[_JOB])


def forget_job(folder: Path) -> None:
    """Removes what only a training that is started again needs: the mark, and checkpoints made on a signal."""
    for path in (folder / _MARKER, *of_signals(folder)):
        path.unlink(missing_ok=True)


def is_started_again(folder: Path) -> bool:
    """Whether this job has already begun the training of a run folder."""
    marker = folder / _MARKER
    return marker.is_file() and marker.read_text() == os.environ.get(_JOB)


def of_signals(folder: Path) -> list[Path]:
    """Checkpoints that Lightning makes when SLURM's signal comes."""
    return list(folder.glob("hpc_ckpt_*.ckpt"))


def checkpoints(folder: Path) -> list[Path]:
    """What the training of a run folder can be continued from, the oldest first."""
    found = [*folder.glob("checkpoints/last.ckpt"), *of_signals(folder)]
    return sorted(found, key=lambda path: path.stat().st_mtime)
