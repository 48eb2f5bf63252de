"""Adversarial images of one scenario, written to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_advdef.evaluation.rows import Rows
from lightning_advdef.files import write_arrays
from lightning_advdef.types import Batch


class AdversarialWriter:
    """Collects the adversarial images that a judge makes and writes them as an ``.npz``.

    The file holds ``x_test`` (float32 in [0, 1], ``(N, C, H, W)``), ``x_clean``, ``y_test``, ``index``, ``prediction``
    and ``clean_prediction``, so that ``--data NPZ`` reads it as a test set.

    Args:
        scenario: Name of the scenario whose images are wanted.
        path: Where to write.
    """

    def __init__(self, scenario: str, path: Path) -> None:
        self.scenario = scenario
        self.path = path
        self._images: list[Tensor] = []
        self._clean: list[Tensor] = []

    def __call__(self, scenario: str, batch: Batch, adversarial: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Keeps the images of a batch; ``watch`` of a judge."""
        if scenario == self.scenario:
            self._images.append(adversarial.cpu())
            self._clean.append(batch.images[: len(adversarial)].cpu())

    def save(self, parts: list[Rows]) -> Path:
        """Writes all of it, sorted by image index.

        Args:
            parts: Rows of each batch, in the order of the batches.
        """
        rows = {column: torch.cat([part[column] for part in parts]) for column in parts[0]}
        order = rows["index"].argsort()
        arrays = {
            "x_test": torch.cat(self._images)[order],
            "x_clean": torch.cat(self._clean)[order],
            "y_test": rows["label"][order],
            "index": rows["index"][order],
            "prediction": rows[f"{self.scenario}/prediction"][order],
            "clean_prediction": rows["clean/prediction"][order],
        }
        write_arrays(self.path, arrays, compressed=True)
        return self.path
