"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
from torch import Tensor


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; what is there takes its place when all is written.

    Makes the folder. If writing fails, ``path`` stays as it was and nothing temporary is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # processes on several machines, perhaps of one number, may write one path
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def file_hash(path: str | Path) -> str:
    """SHA-256 of what a file holds."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_arrays(path: str | Path, tensors: Mapping[str, Tensor], *, compressed: bool = False) -> None:
    """Writes tensors as an ``.npz``, in their order, with the same bytes for the same tensors."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **arrays)
