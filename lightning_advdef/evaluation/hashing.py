"""Hashes of the source and the files that a result rests on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import lightning_advdef

_ROOT = Path(lightning_advdef.__file__).parent


def code_hash(*classes: type) -> str:
    """Changes with the source, so that a result is never continued or repeated by other code.

    Args:
        classes: Of attacks, surrogates and networks in use: the files of those that are neither of this package nor of
            an installed one are hashed as well.
    """
    own = {path for item in classes if (path := _source(item)) is not None}
    content = b"".join(path.read_bytes() for path in sorted(own))
    return hashlib.sha256(_package_source() + content).hexdigest()[:16]


@cache
def _package_source() -> bytes:
    return b"".join(path.read_bytes() for path in sorted(_ROOT.rglob("*.py")))


def _source(item: type) -> Path | None:
    try:
        path = Path(inspect.getfile(item))
    except (TypeError, OSError):
        return None
    installed = _ROOT in path.parents or "site-packages" in path.parts
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
