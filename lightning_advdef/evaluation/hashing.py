"""Hash of the source that a result rests on."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache
from pathlib import Path

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
