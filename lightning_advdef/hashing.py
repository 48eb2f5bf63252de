"""Hashes of the source and the files that a result rests on."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib.util import resolve_name
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import lightning_advdef
from lightning_advdef.attacks import Surrogate
from lightning_advdef.files import file_hash

_ROOT = Path(lightning_advdef.__file__).parent
_WITHOUT_RESULTS = ("distillation", "evaluation/reporting", "export")  # they read results or networks, and make none


def code_hash(*items: object) -> str:
    """Changes with the source, so that a result is never continued or repeated by other code.

    What reports and exports is left out.

    Args:
        items: Attacks, surrogates and networks in use: the files of their classes and base classes, and of those of
            what is in them, such as purifiers, are hashed as well, and the files that these import, unless they are of
            this package or installed.
    """
    own = _own_sources({kind.__module__ for kind in _classes(items)})
    content = b"".join(own[path] for path in sorted(own))
    return hashlib.sha256(_package_source() + content).hexdigest()[:16]


def _own_sources(names: Iterable[str]) -> dict[Path, bytes]:
    """Files of the user's modules of these names, and of the modules that these import, however deep."""
    found: dict[Path, bytes] = {}
    waiting = list(names)
    while waiting:
        module = sys.modules.get(waiting.pop())
        path = None if module is None else _own_path(module)
        if module is not None and path is not None and path not in found:
            found[path] = path.read_bytes()
            waiting += _imported(module, found[path])
    return found


def _imported(module: ModuleType, source: bytes) -> Iterator[str]:
    """Names in its import statements that may be modules: of ``from a.b import c`` these are a, a.b and a.b.c.

    Statements, not what the module holds: a number that it took from another one does not tell where it is from.
    """
    try:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                start = ""
                if isinstance(node, ast.ImportFrom):
                    start = resolve_name("." * node.level + (node.module or ""), module.__package__ or "") + "."
                for alias in node.names:
                    yield from accumulate(f"{start}{alias.name}".split("."), "{}.{}".format)
    except (SyntaxError, ValueError, ImportError):
        return  # compiled, or edited since it was imported and not finished


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


def is_own(kind: type) -> bool:
    """Whether a class is the user's: not of this package, nor Python's, nor installed."""
    module = sys.modules.get(kind.__module__)
    return kind.__module__ == "__main__" or (module is not None and _own_path(module) is not None)


def _own_path(module: ModuleType) -> Path | None:
    """File of a module of the user's; None for one of this package or of Python, installed, or without a file."""
    path = Path(getattr(module, "__file__", None) or "")
    library = module.__name__.partition(".")[0] in sys.stdlib_module_names
    installed = library or _ROOT in path.parents or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
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
    return file_hash(path)
