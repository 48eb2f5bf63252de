"""Attacks on a network whose batch norm is in train mode."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_advdef.attacks import FullGradient
from lightning_advdef.models.batch_norm import batch_norm_layers, frozen_statistics
from lightning_advdef.rng import SampleRNG


class BatchStatistics(FullGradient):
    """Full gradient of a network whose batch norm normalises by the attacked batch, as the training step will.

    Running statistics stay as they are, and dropout stays off: only batch norm layers that were in train mode when the
    surrogate was made differ from :class:`FullGradient`. The images of a batch influence each other here.
    """

    def __init__(self, defense: nn.Module) -> None:
        super().__init__(defense)
        self._layers = [layer for layer in batch_norm_layers(defense) if layer.training]

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of the defense, shape ``(1, N, K)``."""
        for layer in self._layers:
            layer.training = True
        try:
            with frozen_statistics(self._layers):
                return super().logits(images, rng)
        finally:
            for layer in self._layers:
                layer.training = False
