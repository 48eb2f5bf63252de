"""Reading and describing trained networks, without ever running code from a file."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_advdef.errors import CheckpointError
from lightning_advdef.files import whole_file
from lightning_advdef.messages import shorten
from lightning_advdef.models.base import Classifier
from lightning_advdef.types import Eps

_TRUSTED = ("lightning_advdef.", "torch.optim.", "torchvision.")
_PLAIN = (str, int, float, bool, NoneType, Eps, Path, ...)
_CONTAINERS = (Union, UnionType, list, tuple, set, dict, Sequence, Mapping)
_WORDS = re.compile(r"[\w -]*")  # no dot, which an import needs, and no quotation mark, behind which one may hide
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
    if isinstance(value, functools.partial):
        kind = next(filter(inspect.isclass, _called(value)), None)
        return _DROPPED if kind is None else plain(kind) | {"init_args": plain(value.keywords)}
    if dataclasses.is_dataclass(value):
        arguments = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return plain(type(value)) | {"init_args": plain(arguments)}
    return _DROPPED


def _called(value: functools.partial[Any]) -> tuple[Any, ...]:
    """What may be the class that a partial makes: jsonargparse has a function of its own call that."""
    by_parser = (getattr(value.func, "__module__", None) or "").startswith("jsonargparse.")
    return value.args if by_parser else (value.func,)


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

    Its ``state_dict`` is what the file has under that name, or else the only state dict within or the whole of it.

    Raises:
        CheckpointError: If the file is missing, truncated, or holds pickled objects or no state dict.
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
    if isinstance(content.get("state_dict"), Mapping):
        return content
    return {"state_dict": _only_state_dict(content, path)}


def _only_state_dict(content: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
    nested = [key for key, value in content.items() if isinstance(value, Mapping) and _holds_weights(value)]
    if len(nested) == 1:
        found: Mapping[str, Tensor] = content[nested[0]]
        return found
    if nested or not _holds_weights(content):
        listed = ", ".join(map(str, nested or content)) or "nothing"
        raise CheckpointError(f"{path} holds {listed}, where one state dict is needed: save the network's alone")
    return content


def _holds_weights(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def load_weights(module: nn.Module, path: str | Path, *, complete: bool) -> None:
    """Copies the weights of another run into ``module``, but what ``calibrate`` found there for other settings.

    Args:
        module: A defense; its classifier's keys start with ``classifier.``. A file with the keys of a bare network is
            taken as the classifier, or as the network that the classifier is made of.
        path: Checkpoint file.
        complete: Whether every weight of the module must be in the file, but for what ``calibrate`` finds; otherwise
            only the classifier's must.

    Raises:
        CheckpointError: If the file does not fit.
    """
    content = read_checkpoint(path)
    own = module.state_dict()
    readings = _readings(content["state_dict"], getattr(module, "classifier", None))
    state = max(readings, key=lambda reading: len(reading.keys() & own.keys()))
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


def _readings(state: Mapping[str, Tensor], classifier: Any) -> Iterator[Mapping[str, Tensor]]:
    """The weights under all names that they may have in a defense."""
    readings = [state]
    if len({key.partition(".")[0] for key in state}) == 1:
        # DataParallel, torch.compile and modules of Lightning put a name before all others
        readings.append({key.partition(".")[2]: value for key, value in state.items()})
    for reading in readings:
        yield reading
        yield {f"classifier.{key}": value for key, value in reading.items()}
        if isinstance(classifier, Classifier):
            yield {f"classifier.{key}": value for key, value in classifier.renamed(reading).items()}


def _difference(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], missing: list[str], unknown: list[str], shapes: list[str]
) -> str:
    if shapes:
        key = shapes[0]
        return f"{key} has shape {tuple(state[key].shape)} where {tuple(own[key].shape)} is needed"
    if not missing:
        return f"it has {unknown[0]}, which the network lacks"
    instead = f" but {next(iter(state))}" if state and not state.keys() & own.keys() else ""
    return f"it has no {missing[0]}{instead}"


def load_defense(path: str | Path, classes: Sequence[Callable[..., Any]] = ()) -> Any:
    """The defense that a checkpoint was saved from, in eval mode.

    Args:
        path: A ``.ckpt`` written by ``advdef fit``.
        classes: Classes and functions outside this package that the checkpoint may name. Of others, but for those of
            ``torch.optim`` and ``torchvision``, none is imported, in whatever form the file names it.

    Raises:
        CheckpointError: If the file names no class, or one that is neither of this package nor in ``classes``, or does
            not say how its network was made.
    """
    content = read_checkpoint(path)
    settings = dict(content.get("hyper_parameters", {}))
    class_path = settings.pop("_class_path", None)
    settings.pop("_instantiator", None)
    if not isinstance(class_path, str):
        raise CheckpointError(f"{path} does not say which class it belongs to: was it written by advdef fit?")
    vouched = {_path_of(item): item for item in classes}
    _refuse_unknown({"class_path": class_path, "init_args": settings}, Any, vouched, path)
    defense_class = _find(class_path, vouched, path)
    try:
        defense = _build(defense_class, settings | {key: None for key in defense_class.starts if key in settings})
    except argparse.ArgumentError as error:
        raise CheckpointError(
            f"{path} does not describe its {defense_class.__name__} completely ({shorten(str(error))}), as happens "
            "with networks made by a function: build it yourself and give the file as weights="
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


def _path_of(item: Callable[..., Any]) -> str:
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


def _refuse_unknown(value: Any, annotation: Any, classes: Mapping[str, Any], path: str | Path) -> None:
    """Walks a description before any of it is built, and refuses names that nobody vouched for.

    Where a class or a function may stand, any text but plain words is taken for the name of one: a description also
    holds it in the form of text, and the parser would import what that says.
    """
    if isinstance(value, str) and not _WORDS.fullmatch(value) and not _is_plain(annotation):
        _find(value, classes, path)
    elif isinstance(value, list | tuple | set):
        for item in value:
            _refuse_unknown(item, annotation, classes, path)
    elif isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        annotations = _annotations(_find(value["class_path"], classes, path))
        for key, item in value.items():
            if key == "init_args" and isinstance(item, Mapping):
                for name, argument in item.items():
                    _refuse_unknown(argument, annotations.get(name, Any), classes, path)
            elif key != "class_path":
                _refuse_unknown(item, Any, classes, path)
    elif isinstance(value, Mapping):
        for item in value.values():
            _refuse_unknown(item, annotation, classes, path)


def _find(name: str, classes: Mapping[str, Any], path: str | Path) -> Any:
    """The class or function of that name, if it is trusted; nothing but trusted packages is imported."""
    if name in classes:
        return classes[name]
    if name.startswith(_TRUSTED):
        module, _, last = name.rpartition(".")
        # a trusted module holds what it imports, too
        with contextlib.suppress(ImportError, AttributeError):
            found = getattr(importlib.import_module(module), last)
            if f"{found.__module__}.".startswith(_TRUSTED):
                return found
    raise CheckpointError(f"{path} names {name!r}: pass it to load_defense in classes= if you trust it")


def _annotations(item: Any) -> dict[str, Any]:
    """Types of the arguments of a class, with those that it hands on to a base class, or of a function."""
    found: dict[str, Any] = {}
    for base in reversed(getattr(item, "__mro__", [item])):
        constructor = vars(base).get("__init__", object.__init__) if inspect.isclass(base) else base
        for name, annotation in inspect.get_annotations(constructor).items():
            one = SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= get_type_hints(one, vars(importlib.import_module(base.__module__)))
            except NameError:  # of a base class in another module, which said it, or imported for type checkers alone
                found.setdefault(name, Any)
    return found


def _is_plain(annotation: Any) -> bool:
    """Whether no class and no function fits."""
    if get_origin(annotation) in _CONTAINERS:
        return all(map(_is_plain, get_args(annotation)))
    return get_origin(annotation) is Literal or annotation in _PLAIN
