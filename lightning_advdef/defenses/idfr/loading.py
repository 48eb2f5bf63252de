"""Trained parts out of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from lightning_advdef.checkpoints import read_checkpoint
from lightning_advdef.errors import CheckpointError


def require_target_alone(path: str | Path) -> None:
    """Refuses weights with trained parts of their own where others are asked for.

    Raises:
        CheckpointError: If the file has any part of an ``IDFRModule`` beside the target.
    """
    state = read_checkpoint(path)["state_dict"]
    found = sorted({key.partition(".")[0] for key in state} & {"denoiser", "restorer"})
    if found:
        raise CheckpointError(
            f"{path} holds its own {' and '.join(found)}, which parts_weights would replace: leave out "
            "--model.parts_weights, or give a checkpoint of the target alone as --model.weights"
        )


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
