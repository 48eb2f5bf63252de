"""A distilled purifier, as the stand-in of BPDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.checkpoints import read_checkpoint, write_checkpoint
from lightning_advdef.errors import CheckpointError
from lightning_advdef.models import StandIn

_SETTINGS = ("channels", "width")


class DistilledPurifier(nn.Module):
    """A network that ``advdef distill`` fitted to pairs of images and purified images.

    It is no purifier to be deployed: BPDA takes its gradient in place of the purifier's.

    Args:
        weights: File that the command wrote.

    Raises:
        CheckpointError: If the file cannot be read, or holds something else.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        content = read_checkpoint(weights)
        settings: dict[str, Any] = content.get("stand_in", {})
        if set(settings) != set(_SETTINGS):
            raise CheckpointError(f"{weights} holds no distilled purifier: write one with advdef distill -o {weights}")
        with torch.inference_mode(False):  # no gradient passes through weights that are made inside it
            self.network = StandIn(**settings)
            self.network.load_state_dict(content["state_dict"])
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        """What the purifier makes of images ``(N, C, H, W)``, about, with the gradient of this answer.

        Raises:
            ValueError: If it was made for images with other channels.
        """
        if images.shape[1] != self.network.channels:
            raise ValueError(
                f"the distilled purifier in {self.weights} takes images with {self.network.channels} channels, got "
                f"{images.shape[1]}: distil the defense that is attacked"
            )
        purified: Tensor = self.network(images)
        return purified


def save_distilled(stand_in: StandIn, path: str | Path) -> None:
    """Writes a fitted network for :class:`DistilledPurifier`."""
    settings = {name: getattr(stand_in, name) for name in _SETTINGS}
    write_checkpoint({"state_dict": stand_in.state_dict(), "stand_in": settings}, path)
