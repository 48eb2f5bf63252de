"""Numbers about robustness: pure functions on plain tensors, and what torchmetrics lacks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_advdef.metrics.accuracy import accuracy_norm_curve, eps_for_accuracy, worst_case
    from lightning_advdef.metrics.indexed_accuracy import IndexedAccuracy
    from lightning_advdef.metrics.intervals import Interval, mean_interval, normal_interval, wilson_interval
    from lightning_advdef.metrics.norms import NormSummary, RelativeNorm, norm_summary, relative_norm
    from lightning_advdef.metrics.paired import PairedDifference, paired_difference

_HOMES = {
    "IndexedAccuracy": "indexed_accuracy",
    "Interval": "intervals",
    "NormSummary": "norms",
    "PairedDifference": "paired",
    "RelativeNorm": "norms",
    "accuracy_norm_curve": "accuracy",
    "eps_for_accuracy": "accuracy",
    "mean_interval": "intervals",
    "norm_summary": "norms",
    "normal_interval": "intervals",
    "paired_difference": "paired",
    "relative_norm": "norms",
    "wilson_interval": "intervals",
    "worst_case": "accuracy",
}

__all__ = [
    "IndexedAccuracy",
    "Interval",
    "NormSummary",
    "PairedDifference",
    "RelativeNorm",
    "accuracy_norm_curve",
    "eps_for_accuracy",
    "mean_interval",
    "norm_summary",
    "normal_interval",
    "paired_difference",
    "relative_norm",
    "wilson_interval",
    "worst_case",
]


def __getattr__(name: str) -> Any:
    """Imports an export when it is asked for: what compares results needs no torchmetrics, which takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
