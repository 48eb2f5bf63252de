"""Training and evaluation mode, kept layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def same_modes(*modules: nn.Module) -> Iterator[None]:
    """Puts the mode of every submodule back, one by one: a plain ``train()`` would thaw frozen BatchNorm layers."""
    modes = [(child, child.training) for module in modules for child in module.modules()]
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
