"""Forward passes that leave the running statistics of batch norm as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers of a network that keep running statistics, those of several processes included."""
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


@contextmanager
def frozen_statistics(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Running statistics do not change within the ``with`` block.

    Args:
        layers: As :func:`batch_norm_layers` gives them. One in train mode normalises by the batch that it sees, one in
            eval mode by its running statistics, as outside.
    """
    layers = list(layers)
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
