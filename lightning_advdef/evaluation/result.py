"""What a finished evaluation states: summary, circumstances, and what makes a number doubtful."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from lightning_advdef.attacks.verdict import verdict_flags
from lightning_advdef.evaluation.diagnostics.diagnose import diagnose
from lightning_advdef.evaluation.diagnostics.probes import probe
from lightning_advdef.evaluation.judge import Judge
from lightning_advdef.evaluation.rows import Rows
from lightning_advdef.evaluation.summary import summarise
from lightning_advdef.types import Batch

_VERSIONS = ("lightning-advdef", "torch", "pytorch-lightning")


def make_result(rows: Rows, judge: Judge, device: str, world_size: int, probed: Batch | None = None) -> dict[str, Any]:
    """Everything of ``robustness.json`` but the fingerprint, as plain values.

    Args:
        rows: Columns of all images.
        judge: What judged them.
        device: Where it ran.
        world_size: Number of processes.
        probed: Images to look at again, see :func:`~lightning_advdef.evaluation.diagnostics.probes.sample`; None to
            spare the extra passes.
    """
    summary = summarise(rows, judge.scenarios, judge.describe(), judge.settings.draws)
    probes = None if probed is None else probe(judge, summary, rows, probed)
    return {
        "summary_of": "test",
        **summary,
        "stochastic": bool(rows["clean/stochastic"].any()),
        "in_use": judge.in_use(),
        "flags": verdict_flags() | {"search": judge.settings.search},
        "versions": {name: version(name) for name in _VERSIONS},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "world_size": world_size,
        "probed": probed is not None,
        "diagnostics": diagnose(rows, summary, judge, probes),
    }
