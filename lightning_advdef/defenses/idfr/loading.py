"""Trained parts out of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from lightning_advdef.checkpoints import read_checkpoint
from lightning_advdef.errors import CheckpointError


def load_parts(parts: Mapping[str, nn.Module], path: str | Path) -> None:
    """Copies weights of named parts of an ``IDFRModule``, whatever target stood behind them.

    Args:
        parts: Modules by the name that the checkpoint has for them.
        path: Checkpoint file.

    Raises:
        CheckpointError: If the file lacks one or has it in another shape, such as a restorer for another width.
    """
    state = read_checkpoint(path)["state_dict"] if parts else {}
    for name, part in parts.items():
        own = part.state_dict()
        found = {key: state[f"{name}.{key}"] for key in own if f"{name}.{key}" in state}
        if len(found) < len(own):
            raise CheckpointError(
                f"{path} holds no {name} like this one: train it first, and give that run's checkpoint (README of IDFR)"
            )
        for key, value in own.items():
            if value.shape != found[key].shape:
                raise CheckpointError(
                    f"the {name} in {path} does not fit: its {key} has shape {tuple(found[key].shape)} where "
                    f"{tuple(value.shape)} is needed; a restorer goes with targets of one embedding width"
                )
        part.load_state_dict(found)
