"""What is kept of each judged image: columns ``index``, ``label``, ``clean/...`` and ``<scenario>/...``."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.metrics import mean_interval

TEST_AGAIN = "replace the result by running advdef test again with --overwrite"

# what reading a damaged file raises; zlib.error, of a damaged part of a compressed one, is no ValueError
DAMAGED = (ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)

Rows = dict[str, Tensor]


def read_rows(path: Path, remedy: str = TEST_AGAIN) -> Rows:
    """Columns of a ``.npz`` of a result folder.

    Args:
        path: The file.
        remedy: What to do if it cannot be read.

    Raises:
        ResultFolderError: If it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as columns:
            return {name: torch.from_numpy(columns[name]) for name in columns.files}
    except FileNotFoundError as error:
        raise ResultFolderError(f"{path} is missing: {remedy}") from error
    except DAMAGED as error:
        raise ResultFolderError(f"{path} cannot be read: {remedy}") from error


def classes_of(rows: Mapping[str, Tensor]) -> int:
    """Number of classes, as far as labels tell; at least 2."""
    return max(2, int(rows["label"].max()) + 1)


def robust(rows: Mapping[str, Tensor], scenario: str, column: str = "correct") -> Tensor:
    """Share of draws on which each attacked image is right, in [0, 1], shape ``(N,)``.

    An image that is wrong without an attack, on every draw, is not robust, whatever the attack makes of it.
    """
    return torch.where(rows["clean/correct"] > 0, rows[f"{scenario}/{column}"], 0.0)


def accuracy(correct: Tensor) -> dict[str, Any]:
    """Mean, 95% Wilson interval over images, and number of images."""
    return {"value": float(correct.double().mean()), "interval": list(mean_interval(correct)), "images": len(correct)}
