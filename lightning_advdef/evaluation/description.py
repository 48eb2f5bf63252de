"""What a network is besides its weights, as plain values that are the same in every run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from numbers import Number
from typing import Any

from torch import nn
from torchmetrics import Metric

from lightning_advdef.checkpoints import plain

_NOT_PART_OF_THE_MODEL = ("weights", "optimizer", "scheduler")
# public attributes of every module, and of every LightningModule, that change no answer
_OF_NO_ACCOUNT = ("training", "prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe_network(network: nn.Module) -> dict[str, Any]:
    """What makes networks of the same weights answer differently, as far as it can be told without running them.

    Returns:
        ``model``: the class and the hyperparameters. ``layers``: by the name of each submodule (``self`` is the network
        itself) its class, what its ``repr`` says, and its public attributes that are plain values, functions by their
        name. Of tensors and objects of other kinds nothing is said.
    """
    named = {name or "self": module for name, module in network.named_modules() if not isinstance(module, Metric)}
    return {
        "model": {"class": type(network).__qualname__, **_hyperparameters(network)},
        "layers": {name: _ADDRESS.sub("", _layer(module)) for name, module in named.items()},
    }


def _hyperparameters(module: nn.Module) -> dict[str, Any]:
    described = plain(dict(getattr(module, "hparams", {})))
    return {name: value for name, value in described.items() if name not in _NOT_PART_OF_THE_MODEL}


def _layer(module: nn.Module) -> str:
    settings = _hyperparameters(module)
    # a defense of this package keeps all of its arguments there; what training alone needs is left out of them
    if "_class_path" not in settings:
        public = {name: _told(value) for name, value in vars(module).items() if not name.startswith("_")}
        settings = {name: value for name, value in public.items() if value is not None and name not in _OF_NO_ACCOUNT}
    return f"{type(module).__qualname__}({module.extra_repr()}) {settings}"


def _told(value: object) -> Any:
    """Plain values as they are, functions and classes by their name; None for what has neither."""
    if isinstance(value, Number | str):
        return value
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    if isinstance(value, partial):
        return _told([value.func, value.args, value.keywords])
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__qualname__: {field.name: _told(getattr(value, field.name)) for field in fields(value)}}
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else None
