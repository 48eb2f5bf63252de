"""Hash of this package's source."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import lightning_advdef


@cache
def code_hash() -> str:
    """Changes with the source, so that a result is never continued or repeated by other code."""
    root = Path(lightning_advdef.__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(root.rglob("*.py")))).hexdigest()[:16]
