"""A job that is started again within itself goes on where it was.

SLURM starts the very same command once more: after the signal that Lightning answers with a checkpoint and
``scontrol requeue``, or by itself when a node has died. ``torchrun --max-restarts`` does so when a process has died.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from lightning_advdef.files import whole_file

_MARKER = "job"


def _this_start() -> dict[str, Any]:
    """What tells one start from another; SLURM counts requeues only, so two lines of a script have the same number."""
    return {
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "run": os.environ.get("TORCHELASTIC_RUN_ID"),
        "attempts": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
        "agent": f"{socket.gethostname()}:{os.getppid()}",
        "process": os.getpid(),
    }


def _noted(folder: Path) -> dict[str, Any] | None:
    marker = folder / _MARKER
    return json.loads(marker.read_text()) if marker.is_file() else None


def note_job(folder: Path) -> None:
    """Marks a folder as begun by this job, if it is one that may be started again; the first start stays noted."""
    start = _this_start()
    if (start["job"] or start["run"]) and not is_started_again(folder):
        with whole_file(folder / _MARKER) as unfinished:
            unfinished.write_text(json.dumps(start))


def is_started_again(folder: Path) -> bool:
    """Whether SLURM has put this job back into the queue since it began what lies in a folder."""
    noted, now = _noted(folder), _this_start()
    return noted is not None and now["job"] == noted["job"] is not None and now["restarts"] > noted["restarts"]


def is_tried_again(folder: Path) -> bool:
    """Whether torchrun has started this process again since it began what lies in a folder.

    The number of attempts is that of a machine: it stays when another one's process has died, and then the parent,
    torchrun's agent, is the same. So processes may disagree, and one of them has to decide.
    """
    noted, now = _noted(folder), _this_start()
    if noted is None or now["run"] is None or now["run"] != noted["run"]:
        return False
    by_same_agent = now["agent"] == noted["agent"] and now["process"] != noted["process"]
    return bool(now["attempts"] > noted["attempts"] or by_same_agent)


def of_signals(folder: Path) -> list[Path]:
    """Checkpoints that Lightning makes when SLURM's signal comes."""
    return list(folder.glob("hpc_ckpt_*.ckpt"))


def forget_signals(folder: Path) -> None:
    """Removes those, once nothing is to go on from them."""
    for path in of_signals(folder):
        path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """What the training of a run folder can be continued from, the oldest first."""
    found = [*folder.glob("checkpoints/last.ckpt"), *of_signals(folder)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def checkpoints_of_job(folder: Path) -> list[Path]:
    """Those that this job has made, the oldest first; none unless it is started again."""
    if not is_started_again(folder):
        return []
    began = (folder / _MARKER).stat().st_mtime
    return [path for path in checkpoints(folder) if path.stat().st_mtime >= began]
