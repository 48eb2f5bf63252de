"""The table with a row per image, as plain values that the page's script shows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_advdef.evaluation.rows import robust
from lightning_advdef.evaluation.run import Run

LARGEST = 20_000  # rows of a model in a page, so that it opens at once


def images_json(runs: Sequence[Run]) -> str:
    """Columns of each run as JSON that may stand inside a ``<script>``.

    A column has ``title``, ``kind`` (``number``, ``verdict``: share of draws on which the answer is right, ``norm``)
    and ``values``; a verdict also has ``classes``, what was predicted.
    """
    tables = [{"title": run.title, "images": len(run.rows["index"]), "columns": _columns(run)} for run in runs]
    # "</script>" in a name would end the script
    return json.dumps(tables, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _columns(run: Run) -> list[dict[str, Any]]:
    rows = {name: column[:LARGEST] for name, column in run.rows.items()}
    columns = [
        {"title": "image", "kind": "number", "values": rows["index"].tolist()},
        {"title": "label", "kind": "number", "values": rows["label"].tolist()},
        _verdict("clean", rows["clean/correct"], rows["clean/prediction"]),
    ]
    for scenario in run.result["scenarios"]:
        name = scenario["name"]
        if "norms" in scenario:
            broken = robust(rows, name) == 0
            norms = rows[f"{name}/{scenario['norm']}"].tolist()
            values = [_short(norm) if lost else None for norm, lost in zip(norms, broken.tolist(), strict=True)]
            columns.append({"title": f"{name} ({scenario['norm']})", "kind": "norm", "values": values})
        else:
            columns.append(_verdict(name, robust(rows, name), rows[f"{name}/prediction"]))
    return columns


def _verdict(title: str, shares: Tensor, predictions: Tensor) -> dict[str, Any]:
    values = [_short(share) for share in shares.tolist()]
    return {"title": title, "kind": "verdict", "values": values, "classes": predictions.tolist()}


def _short(value: float) -> float | None:
    """Four digits keep the page small."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
