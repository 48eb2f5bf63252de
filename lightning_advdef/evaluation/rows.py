"""What is kept of each judged image: columns ``index``, ``label``, ``clean/...`` and ``<scenario>/...``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Rows = dict[str, Tensor]


def read_rows(path: Path) -> Rows:
    """Columns of a ``.npz`` of a result folder."""
    with np.load(path, allow_pickle=False) as columns:
        return {name: torch.from_numpy(columns[name]) for name in columns.files}


def robust(rows: Mapping[str, Tensor], scenario: str, column: str = "correct") -> Tensor:
    """Share of draws on which each attacked image is right, in [0, 1], shape ``(N,)``.

    An image that is wrong without an attack, on every draw, is not robust, whatever the attack makes of it.
    """
    return torch.where(rows["clean/correct"] > 0, rows[f"{scenario}/{column}"], 0.0)
