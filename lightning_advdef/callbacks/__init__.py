"""Lightning callbacks: the evaluation, what it shows, and watching a training."""

from lightning_advdef.callbacks.epoch_line import EpochLine
from lightning_advdef.callbacks.overfitting_guard import OverfittingGuard
from lightning_advdef.callbacks.requeue import RequeueBetweenSteps
from lightning_advdef.callbacks.robustness import RobustnessEvaluation

__all__ = ["EpochLine", "OverfittingGuard", "RequeueBetweenSteps", "RobustnessEvaluation"]
