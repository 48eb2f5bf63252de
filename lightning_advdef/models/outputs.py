"""What a network may give as logits."""

from __future__ import annotations

from torch import Tensor

_ROUNDING = 1e-4  # of a sum of float32 probabilities


def refuse_probabilities(name: str, logits: Tensor) -> None:
    """Refuses the softmax of logits in their place: it saturates, and differences of logits are what attacks follow.

    Args:
        name: Of the network.
        logits: What it gives, shape ``(N, K)``, at least one row.

    Raises:
        ValueError: If every row has no negative value and sums to 1; one class alone has nothing to hide.
    """
    sums = logits.sum(dim=1)
    if logits.shape[1] > 1 and logits.min() >= 0 and (sums - 1).abs().max() < _ROUNDING:
        raise ValueError(f"{name} gives probabilities, which hide gradients from attacks: remove its last softmax")


def require_classes(name: str, classes: int, largest_label: int) -> None:
    """Refuses labels that the logits have no place for.

    Args:
        name: Of the network.
        classes: Number of its logits.
        largest_label: Of all images.

    Raises:
        ValueError: If the largest label is no class.
    """
    if largest_label >= classes:
        raise ValueError(
            f"labels go up to {largest_label}, but {name} knows classes 0 to {classes - 1}: give the labels of the "
            "data that the network is made for"
        )
