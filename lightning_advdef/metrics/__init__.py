"""Numbers about robustness: pure functions on plain tensors, and what torchmetrics lacks."""

from lightning_advdef.metrics.accuracy import accuracy_norm_curve, eps_for_accuracy, worst_case
from lightning_advdef.metrics.indexed_accuracy import IndexedAccuracy
from lightning_advdef.metrics.intervals import Interval, mean_interval, normal_interval, wilson_interval
from lightning_advdef.metrics.norms import NormSummary, RelativeNorm, norm_summary, relative_norm

__all__ = [
    "IndexedAccuracy",
    "Interval",
    "NormSummary",
    "RelativeNorm",
    "accuracy_norm_curve",
    "eps_for_accuracy",
    "mean_interval",
    "norm_summary",
    "normal_interval",
    "relative_norm",
    "wilson_interval",
    "worst_case",
]
