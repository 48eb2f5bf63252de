"""Reading and describing trained networks, without ever running code from a file."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import importlib
import inspect
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_advdef.errors import CheckpointError
from lightning_advdef.files import whole_file
from lightning_advdef.messages import shorten
from lightning_advdef.types import Eps

_TRUSTED = ("lightning_advdef.", "torch.optim.", "torchvision.")
_DROPPED = object()
# of buffers that hold what calibration finds; other runs' weights do without them
_CALIBRATED = "calibrated_"


def plain(value: Any) -> Any:
    """A description of a constructor argument made of plain values, as a YAML would hold it.

    Classes, ``functools.partial`` of classes and dataclasses become ``class_path`` and ``init_args``; what has no such
    description (a lambda, say) is left out, so that its default is used when the object is built again.
    """
    if isinstance(value, Eps):
        return float(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        described = {key: plain(item) for key, item in value.items()}
        return {key: item for key, item in described.items() if item is not _DROPPED}
    if isinstance(value, Sequence):
        return [item for item in map(plain, value) if item is not _DROPPED]
    if inspect.isclass(value):
        return {"class_path": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, functools.partial) and inspect.isclass(value.func):
        return plain(value.func) | {"init_args": plain(value.keywords)}
    if dataclasses.is_dataclass(value):
        arguments = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return plain(type(value)) | {"init_args": plain(arguments)}
    return _DROPPED


def same_settings(own: Any, stored: Any) -> bool:
    """Whether two descriptions by :func:`plain` agree wherever both say something.

    Of a class only the name counts, since a YAML may import it from a package that exports it.
    """
    if isinstance(own, Mapping) and isinstance(stored, Mapping):
        return all(
            _class_name(own[key]) == _class_name(stored[key])
            if key == "class_path"
            else same_settings(own[key], stored[key])
            for key in own.keys() & stored.keys()
        )
    if isinstance(own, list) and isinstance(stored, list):
        return len(own) == len(stored) and all(map(same_settings, own, stored))
    return bool(own == stored)


def _class_name(path: str) -> str:
    return path.rpartition(".")[2]


def tensor_bytes(tensor: Tensor) -> bytes:
    """The values of a tensor of any dtype."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights and buffers, also those that no checkpoint holds."""
    digest = hashlib.sha256()
    for name, value in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + tensor_bytes(value))
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a ``.ckpt`` (tensors and plain values only) or ``.safetensors`` file.

    Raises:
        CheckpointError: If the file is missing, truncated, or holds pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: give the path of a .ckpt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return {"state_dict": load_file(path)}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds pickled Python objects (or is damaged) and was not opened, since loading could run code: "
            "save its state_dict instead"
        ) from None
    except (RuntimeError, SafetensorError, EOFError, OSError) as error:
        reason = (str(error) or "it is empty").splitlines()[0].split(". ")[0]
        raise CheckpointError(f"{path} is truncated or not a checkpoint: {reason}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content if "state_dict" in content else {"state_dict": content}


def load_weights(module: nn.Module, path: str | Path, *, complete: bool) -> None:
    """Copies the weights of another run into ``module``, but what ``calibrate`` found there for other settings.

    Args:
        module: A defense; its classifier's keys start with ``classifier.``. A file with the keys of a bare network is
            taken as the classifier.
        path: Checkpoint file.
        complete: Whether every weight of the module must be in the file, but for what ``calibrate`` finds; otherwise
            only the classifier's must.

    Raises:
        CheckpointError: If the file does not fit.
    """
    content = read_checkpoint(path)
    state: dict[str, Tensor] = content["state_dict"]
    if not any(key.startswith("classifier.") for key in state):
        state = {f"classifier.{key}": value for key, value in state.items()}
    own = module.state_dict()
    required = [key for key in own if key.startswith("classifier.") or (complete and not key.startswith(_CALIBRATED))]
    missing = [key for key in required if key not in state]
    unknown = [key for key in state if key.startswith("classifier.") and key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unknown or shapes:
        network = type(getattr(module, "classifier", module)).__name__
        raise CheckpointError(
            f"the weights in {path} are of another architecture than {network}: "
            f"{_difference(own, state, missing, unknown, shapes)}; change --model.network or --model.weights"
        )
    taken = own.keys() - _found_for_others(module, content.get("hyper_parameters", {}))
    module.load_state_dict({key: value for key, value in state.items() if key in taken}, strict=False)


def _found_for_others(module: nn.Module, stored: Mapping[str, Any]) -> set[str]:
    """Calibrated buffers of a defense whose settings differ from the ``stored`` ones that they were found for."""
    settings: Mapping[str, Any] = getattr(module, "hparams", {})
    return {
        buffer
        for buffer, names in getattr(module, "calibrated_for", {}).items()
        if not all(same_settings(settings[name], stored[name]) for name in names if name in settings and name in stored)
    }


def _difference(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], missing: list[str], unknown: list[str], shapes: list[str]
) -> str:
    if shapes:
        key = shapes[0]
        return f"{key} has shape {tuple(state[key].shape)} where {tuple(own[key].shape)} is needed"
    return f"it has no {missing[0]}" if missing else f"it has {unknown[0]}, which the network lacks"


def load_defense(path: str | Path, classes: Sequence[type] = ()) -> Any:
    """The defense that a checkpoint was saved from, in eval mode.

    Args:
        path: A ``.ckpt`` written by ``advdef fit``.
        classes: Classes outside this package that the checkpoint may name.

    Raises:
        CheckpointError: If the file names no class, or one that is neither of this package nor in ``classes``, or does
            not say how its network was made.
    """
    content = read_checkpoint(path)
    settings = dict(content.get("hyper_parameters", {}))
    class_path = settings.pop("_class_path", None)
    settings.pop("_instantiator", None)
    if class_path is None:
        raise CheckpointError(f"{path} does not say which class it belongs to: was it written by advdef fit?")
    _refuse_unknown({"class_path": class_path, "init_args": settings}, [_path_of(item) for item in classes], path)
    module_name, _, name = class_path.rpartition(".")
    defense_class = getattr(importlib.import_module(module_name), name)
    try:
        defense = _build(defense_class, settings | {key: None for key in defense_class.starts if key in settings})
    except argparse.ArgumentError as error:
        raise CheckpointError(
            f"{path} does not describe its {name} completely ({shorten(str(error))}), as happens with networks made by "
            "a function: build it yourself and give the file as weights="
        ) from None
    load_weights(defense, path, complete=True)
    return defense.eval()


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Writes tensors and plain values."""
    with whole_file(path) as unfinished:
        torch.save(dict(content), unfinished)


def save_defense(defense: Any, path: str | Path) -> None:
    """Writes weights and settings of a defense to a ``.ckpt`` that :func:`load_defense` reads."""
    write_checkpoint({"state_dict": defense.state_dict(), "hyper_parameters": dict(defense.hparams)}, path)


def _path_of(item: type) -> str:
    return f"{item.__module__}.{item.__qualname__}"


def description_parser() -> Any:
    """A parser of jsonargparse that builds objects from descriptions of plain values, as the command line does."""
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import register_type

    # the command line does so, too; without it the budget of an attack in the description is not understood
    register_type(Eps, serializer=float, deserializer=Eps)
    return ArgumentParser(exit_on_error=False)


def _build(defense_class: type, settings: Mapping[str, Any]) -> Any:
    parser = description_parser()
    parser.add_class_arguments(defense_class, "defense")
    return parser.instantiate_classes(parser.parse_object({"defense": settings})).defense


def _refuse_unknown(value: Any, allowed: Sequence[str], path: str | Path) -> None:
    """Walks a description and refuses classes that nobody vouched for."""
    if isinstance(value, Mapping):
        named = value.get("class_path")
        if isinstance(named, str) and not named.startswith(_TRUSTED) and named not in allowed:
            raise CheckpointError(
                f"{path} names the class {named}: pass it to load_defense in classes= if you trust it"
            )
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_unknown(item, allowed, path)
