"""Hashes of the source and the files that a result rests on."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

import lightning_advdef
from lightning_advdef.attacks import Surrogate

_ROOT = Path(lightning_advdef.__file__).parent
_WITHOUT_RESULTS = ("distillation", "evaluation/reporting", "export")  # they read results or networks, and make none


def code_hash(*items: object) -> str:
    """Changes with the source, so that a result is never continued or repeated by other code.

    What reports and exports is left out.

    Args:
        items: Attacks, surrogates and networks in use: the files of their classes and base classes, and of those of
            what is in them, such as purifiers, are hashed as well, unless they are of this package or installed.
    """
    own = {path for kind in _classes(items) if (path := _source(kind)) is not None}
    content = b"".join(path.read_bytes() for path in sorted(own))
    return hashlib.sha256(_package_source() + content).hexdigest()[:16]


def _classes(items: Iterable[object]) -> set[type]:
    """Classes, with their bases, of items and of all that they hold, however deep."""
    found: dict[int, object] = {}
    waiting = list(items)
    while waiting:
        item = waiting.pop()
        if id(item) not in found:
            found[id(item)] = item
            waiting += _held(item)
    return {kind for item in found.values() for kind in type(item).__mro__}


def _held(item: object) -> Iterable[object]:
    """What lies in a container, or is an attribute of a module, surrogate or dataclass; nothing for other objects."""
    if isinstance(item, Mapping):
        return item.values()
    if isinstance(item, list | tuple):
        return item
    if isinstance(item, nn.Module | Surrogate) or (is_dataclass(item) and not isinstance(item, type)):
        return vars(item).values()
    return ()


@cache
def _package_source() -> bytes:
    shown = [_ROOT / folder for folder in _WITHOUT_RESULTS]
    paths = [path for path in sorted(_ROOT.rglob("*.py")) if not any(folder in path.parents for folder in shown)]
    return b"".join(path.read_bytes() for path in paths)


def _source(item: type) -> Path | None:
    try:
        path = Path(inspect.getfile(item))
    except (TypeError, OSError):
        return None
    library = item.__module__.partition(".")[0] in sys.stdlib_module_names
    installed = library or _ROOT in path.parents or "site-packages" in path.parts
    return path if path.is_file() and not installed else None


def file_hashes(description: Any) -> dict[str, str]:
    """SHA-256 of every file that a description of plain values names as ``checkpoint``, however deep.

    Files that do not exist are left out; whoever needs them will say so.
    """
    if isinstance(description, Mapping):
        return _own_hash(description.get("checkpoint")) | file_hashes(list(description.values()))
    if isinstance(description, list):
        return {path: digest for item in description for path, digest in file_hashes(item).items()}
    return {}


def _own_hash(path: Any) -> dict[str, str]:
    if not isinstance(path, str) or not Path(path).is_file():
        return {}
    return {path: _file_hash(path, Path(path).stat().st_mtime_ns)}


@cache
def _file_hash(path: str, modified: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
