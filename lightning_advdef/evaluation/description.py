"""What a network is besides its weights, as plain values that are the same in every run."""

from __future__ import annotations

import hashlib
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
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe_network(network: nn.Module) -> dict[str, Any]:
    """What makes networks of the same weights answer differently, as far as it can be told without running them.

    Returns:
        ``model``: the class and the hyperparameters. ``layers``: by the name of each submodule (``self`` is the network
        itself) its class, what its ``repr`` says, and its attributes: plain values as they are, tensors and arrays by
        their hash, functions by their name, objects of the user's classes by their attributes, modules that are not
        registered as here. Of objects of other libraries, and of tensors that a pass computes, nothing is said.
    """
    return _described(network, frozenset())


def _described(network: nn.Module, within: frozenset[int]) -> dict[str, Any]:
    """The same, unless it is told within its own description."""
    named = {name or "self": module for name, module in network.named_modules() if not isinstance(module, Metric)}
    within |= {id(module) for module in named.values()}
    return {
        "model": {"class": type(network).__qualname__, **_hyperparameters(network)},
        "layers": {name: _ADDRESS.sub("", _layer(module, within)) for name, module in named.items()},
    }


def _hyperparameters(module: nn.Module) -> dict[str, Any]:
    described = plain(dict(getattr(module, "hparams", {})))
    return {name: value for name, value in described.items() if name not in _NOT_PART_OF_THE_MODEL}


def _layer(module: nn.Module, within: frozenset[int]) -> str:
    settings = _hyperparameters(module)
    # a defense of this package keeps all of its arguments there; what training alone needs is left out of them
    if "_class_path" not in settings:
        own = {name: value for name, value in vars(module).items() if name not in _OF_ALL_MODULES}
        if module._forward_pre_hooks:  # which compute weights from others in each pass: spectral norm, pruning
            own = {name: value for name, value in own.items() if not isinstance(value, Tensor)}
        found = {name: _told(value, within) for name, value in own.items()}
        settings = {name: value for name, value in found.items() if value is not None}
    return f"{type(module).__qualname__}({module.extra_repr()}) {settings}"


def _told(value: object, within: frozenset[int]) -> Any:
    """What there is to tell of a value, as plain values; None if there is nothing, or it is told further out."""
    if isinstance(value, Number | str):
        return value
    if id(value) in within:
        return None
    within |= {id(value)}
    if isinstance(value, list | tuple):
        return [_told(item, within) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _told(item, within) for key, item in value.items()}
    if isinstance(value, partial):
        return _told([value.func, value.args, value.keywords], within)
    if isinstance(value, Tensor | np.ndarray):
        return _hash(value)
    if isinstance(value, nn.Module):
        return {**_described(value, within), "weights": weights_hash(value)}
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else _attributes(value, within)


def _attributes(value: object, within: frozenset[int]) -> dict[str, Any] | None:
    """Of an object whose attributes are settings."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Namespace | SimpleNamespace) or (is_own(type(value)) and hasattr(value, "__dict__")):
        found = vars(value)
    else:
        return None
    return {type(value).__qualname__: {name: _told(item, within) for name, item in found.items()}}


def _hash(values: Tensor | np.ndarray[Any, Any]) -> str | None:
    """Of type, shape and values; None for what is computed from other tensors, or has no plain values."""
    if isinstance(values, np.ndarray):
        content = None if values.dtype.hasobject else values.tobytes()
    else:
        content = tensor_bytes(values) if values.layout == torch.strided and values.grad_fn is None else None
    if content is None:
        return None
    return hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode() + content).hexdigest()[:16]
