"""Adversarial images of one scenario, written to a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.rows import DAMAGED, Rows
from lightning_advdef.evaluation.store import first_difference
from lightning_advdef.files import write_arrays
from lightning_advdef.types import Batch


class AdversarialWriter:
    """Collects the adversarial images that a judge makes and writes them as an ``.npz``.

    The file holds ``x_test`` (float32 in [0, 1], ``(N, C, H, W)``), ``x_clean``, ``y_test``, ``index``, ``prediction``
    and ``clean_prediction``, so that ``--data NPZ`` reads it as a test set, and ``fingerprint``, the bytes of JSON.

    Args:
        scenario: Name of the scenario whose images are wanted.
        path: Where to write.
        fingerprint: What makes the images what they are.
        overwrite: Replace those of a different run.

    Raises:
        ResultFolderError: If the file holds the images of a different run.
    """

    def __init__(self, scenario: str, path: Path, fingerprint: Mapping[str, Any], overwrite: bool = False) -> None:
        self.scenario = scenario
        self.path = path
        self._fingerprint = json.dumps(fingerprint)
        if not overwrite:
            self._refuse_other_run()
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
            "fingerprint": torch.tensor(list(self._fingerprint.encode()), dtype=torch.uint8),
        }
        write_arrays(self.path, arrays, compressed=True)
        return self.path

    def _refuse_other_run(self) -> None:
        """A damaged file may be replaced."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                other = arrays["fingerprint"].tobytes().decode() if "fingerprint" in arrays else None
        except (FileNotFoundError, *DAMAGED):
            return
        if other == self._fingerprint:
            return
        difference = other and first_difference(json.loads(self._fingerprint), json.loads(other))
        run = f"a different run ({difference})" if difference else "an unknown run"
        raise ResultFolderError(
            f"{self.path} holds the adversarial images of {run}: choose another --name, or replace them with "
            "--overwrite"
        )
