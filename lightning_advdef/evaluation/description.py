"""What a network is besides its weights, as plain values that are the same in every run."""

from __future__ import annotations

import hashlib
import inspect
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from numbers import Number
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_advdef.checkpoints import plain, tensor_bytes, weights_hash
from lightning_advdef.hashing import is_own

_NOT_PART_OF_THE_MODEL = ("weights", "optimizer", "scheduler")
# what every module and every LightningModule has, and where the latter keeps its hyperparameters
_OF_ALL_MODULES = {*vars(LightningModule()), "_hparams", "_hparams_initial", "_hparams_name", "_log_hyperparams"}
_DEEPEST = 20
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe_network(network: nn.Module) -> dict[str, Any]:
    """What makes networks of the same weights answer differently, as far as it can be told without running them.

    Returns:
        ``model``: the class and the hyperparameters. ``layers``: by the name of each submodule (``self`` is the network
        itself) its class, what its ``repr`` says, and its attributes, also what a pass leaves there: plain values as
        they are, tensors and arrays by their hash, functions by their name, objects of the user's classes by their
        attributes, modules that are not registered as here. Of objects of other libraries, of tensors with a graph, and
        of what is held very deep, nothing is said.
    """
    return _Teller().network(network)


def _hyperparameters(module: nn.Module) -> dict[str, Any]:
    described = plain(dict(getattr(module, "hparams", {})))
    return {name: value for name, value in described.items() if name not in _NOT_PART_OF_THE_MODEL}


class _Teller:
    """Tells every module and object once, since they may hold each other."""

    def __init__(self) -> None:
        self._known: dict[int, object] = {}  # kept, so that no other takes the place of one in memory
        self._depth = 0

    def network(self, network: nn.Module) -> dict[str, Any]:
        """See :func:`describe_network`."""
        named = {name or "self": module for name, module in network.named_modules() if not isinstance(module, Metric)}
        self._known |= {id(module): module for module in named.values()}
        return {
            "model": {"class": type(network).__qualname__, **_hyperparameters(network)},
            "layers": {name: _ADDRESS.sub("", self._layer(module)) for name, module in named.items()},
        }

    def _layer(self, module: nn.Module) -> str:
        settings = _hyperparameters(module)
        # a defense of this package keeps all of its arguments there; what training alone needs is left out of them
        if "_class_path" not in settings:
            left_out = _left_out(module)
            found = {name: self._told(value) for name, value in vars(module).items() if name not in left_out}
            settings = {name: value for name, value in found.items() if value is not None}
        return f"{type(module).__qualname__}({module.extra_repr()}) {settings}"

    def _told(self, value: object) -> Any:
        """What there is to tell of a value, as plain values; None if there is nothing, or it was told."""
        if isinstance(value, Number | str):
            return value
        if isinstance(value, Tensor | np.ndarray):
            return _hash(value)
        if inspect.isclass(value) or inspect.isroutine(value):
            return getattr(value, "__qualname__", None)
        if self._depth == _DEEPEST:
            return None
        self._depth += 1
        try:
            return self._held(value)
        finally:
            self._depth -= 1

    def _held(self, value: object) -> Any:
        if isinstance(value, list | tuple):
            return [self._told(item) for item in value]
        if isinstance(value, Mapping):
            return {str(key): self._told(item) for key, item in value.items()}
        if isinstance(value, partial):
            return [self._told(part) for part in (value.func, value.args, value.keywords)]
        if id(value) in self._known:
            return None
        self._known[id(value)] = value
        if isinstance(value, nn.Module):
            return {**self.network(value), "weights": weights_hash(value)}
        found = _attributes(value)
        return found and {type(value).__qualname__: {name: self._told(item) for name, item in found.items()}}


def _left_out(module: nn.Module) -> set[str]:
    """Attributes of all modules, and weights that are computed from others in each pass."""
    parameters = [name for name, _ in module.named_parameters(recurse=False)]
    # by spectral norm and pruning, and by weight norm
    return _OF_ALL_MODULES | {
        name.removesuffix(end) for end in ("_orig", "_g") for name in parameters if name.endswith(end)
    }


def _attributes(value: object) -> Mapping[str, object] | None:
    """Of an object whose attributes are settings."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    settings = isinstance(value, Namespace | SimpleNamespace) or is_own(type(value))
    return vars(value) if settings and type(value).__dictoffset__ else None


def _hash(values: Tensor | np.ndarray[Any, Any]) -> str | None:
    """Of type, shape and values; None for what is computed from other tensors, or has no plain values."""
    if isinstance(values, np.ndarray):
        content = None if values.dtype.hasobject else values.tobytes()
    else:
        content = tensor_bytes(values.resolve_conj().resolve_neg()) if _has_plain_values(values) else None
    if content is None:
        return None
    return hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode() + content).hexdigest()[:16]


def _has_plain_values(values: Tensor) -> bool:
    plain_kind = type(values) in (Tensor, nn.Parameter) and values.layout == torch.strided
    return plain_kind and not (values.is_meta or values.is_nested or values.is_quantized or values.grad_fn is not None)
