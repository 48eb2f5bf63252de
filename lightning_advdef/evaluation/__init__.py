"""Evaluation: scenarios, verdicts, results."""

from lightning_advdef.evaluation.judge import Judge, JudgeSettings
from lightning_advdef.evaluation.scenario import Scenario, expand
from lightning_advdef.evaluation.store import ResultStore

__all__ = ["Judge", "JudgeSettings", "ResultStore", "Scenario", "expand"]
