"""Lightning callbacks: the evaluation and what it shows."""

from lightning_advdef.callbacks.robustness import RobustnessEvaluation

__all__ = ["RobustnessEvaluation"]
