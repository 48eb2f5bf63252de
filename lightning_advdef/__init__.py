"""Train, defend and honestly evaluate image classifiers against adversarial perturbations."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_advdef.evaluation import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    """Imports an export when it is asked for: commands that need neither attacks nor Lightning start at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_advdef import evaluation

    return getattr(evaluation, name)
