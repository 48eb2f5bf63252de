"""Hashes of the source and the files that a result rests on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
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
        path = description.get("checkpoint")
        own = (
            _file_hash(path, Path(path).stat().st_mtime_ns) if isinstance(path, str) and Path(path).is_file() else None
        )
        found = {} if own is None else {str(path): own}
        description = list(description.values())
    else:
        found = {}
    if isinstance(description, Sequence) and not isinstance(description, str):
        for item in description:
            found |= file_hashes(item)
    return found


@cache
def _file_hash(path: str, modified: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
