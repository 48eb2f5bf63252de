"""Trained parts out of a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_advdef.checkpoints import load_weights, plain, read_checkpoint, same_settings
from lightning_advdef.defenses.idfr.training import Networks
from lightning_advdef.errors import CheckpointError

_ADVICE = {
    "denoiser": "give --model.denoiser the settings it was trained with",
    "restorer": "a restorer goes with targets of one embedding width, and with its own --model.restorer",
}


def load_networks(
    networks: Networks,
    weights: str | None,
    parts_weights: str | None,
    deployed: str,
    settings: Mapping[str, Any],
    *,
    fit: bool,
) -> None:
    """Loads the target of ``weights`` and the trained parts of ``parts_weights`` or else of ``weights``.

    Args:
        networks: Where to; what a ``fit`` trains is left as it is.
        weights: Checkpoint of the target, maybe with parts of its own; None to leave it as it is.
        parts_weights: Checkpoint of the parts.
        deployed: Which parts are to answer.
        settings: See :func:`load_parts`.
        fit: Whether a part is about to be trained.

    Raises:
        CheckpointError: If a file lacks something or has it in another form, both have trained parts for a test, or one
            has a restorer that would be left out of a test unasked.
    """
    if weights is not None:
        if not fit and parts_weights is not None:
            require_target_alone(weights)
        load_weights(nn.ModuleDict({"classifier": networks.classifier}), weights, complete=True)
    path = parts_weights or weights
    if path is None:
        return
    trained: dict[str, nn.Module] = {}
    if networks.restorer is not None or not fit:
        trained["denoiser"] = networks.denoiser
    if networks.restorer is not None and not fit:
        trained["restorer"] = networks.restorer
    if networks.restorer is None and not fit and deployed == "all":
        require_no_restorer(path)
    load_parts(trained, path, settings)


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


def require_no_restorer(path: str | Path) -> None:
    """Refuses to leave a trained restorer out without being told to.

    Raises:
        CheckpointError: If the file has one.
    """
    if any(key.startswith("restorer.") for key in read_checkpoint(path)["state_dict"]):
        raise CheckpointError(
            f"{path} holds a restorer, which stage: denoise lacks: add --model.stage restore, or leave it out with "
            "--model.parts denoiser"
        )


def load_parts(parts: Mapping[str, nn.Module], path: str | Path, settings: Mapping[str, Any]) -> None:
    """Copies weights of named parts of an ``IDFRModule``, whatever target stood behind them.

    Args:
        parts: Modules by the name that the checkpoint has for them.
        path: Checkpoint file.
        settings: Hyper-parameters that the parts were made from, to be compared with those of the checkpoint: some,
            such as ``skip_from``, no shape tells.

    Raises:
        CheckpointError: If the file lacks one, has it in another shape, or made it from other settings.
    """
    content = read_checkpoint(path) if parts else {}
    stored = content.get("hyper_parameters", {})
    for name, part in parts.items():
        found = _weights_of(name, part, content["state_dict"], path)
        _require_same(name, _completed(settings.get(name), part), _completed(stored.get(name), part), path)
        part.load_state_dict(found)


def _weights_of(name: str, part: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
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
                f"{tuple(value.shape)} is needed; {_ADVICE[name]}"
            )
    return found


def _completed(description: Any, part: nn.Module) -> dict[str, Any]:
    """Settings of a part, those left at their defaults included; empty if its factory has no description."""
    if not isinstance(description, Mapping):
        return {}
    parameters = inspect.signature(type(part)).parameters.values()
    defaults = {each.name: plain(each.default) for each in parameters if each.default is not each.empty}
    return defaults | {name: plain(value) for name, value in (description.get("init_args") or {}).items()}


def _require_same(name: str, own: Mapping[str, Any], stored: Mapping[str, Any], path: str | Path) -> None:
    for key in own.keys() & stored.keys():
        if not same_settings(own[key], stored[key]):
            raise CheckpointError(
                f"the {name} in {path} was trained with {key}: {stored[key]}, not {own[key]}: change --model.{name}"
            )
