"""Evaluation: scenarios, verdicts, results."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_advdef.evaluation.in_memory import Evaluation, evaluate
    from lightning_advdef.evaluation.judge import Judge, JudgeSettings
    from lightning_advdef.evaluation.scenario import Scenario, expand
    from lightning_advdef.evaluation.store import ResultStore

_HOMES = {
    "Evaluation": "in_memory",
    "Judge": "judge",
    "JudgeSettings": "judge",
    "ResultStore": "store",
    "Scenario": "scenario",
    "evaluate": "in_memory",
    "expand": "scenario",
}

__all__ = ["Evaluation", "Judge", "JudgeSettings", "ResultStore", "Scenario", "evaluate", "expand"]


def __getattr__(name: str) -> Any:
    """Imports an export when it is asked for: `advdef report` reads results and needs neither attacks nor Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
