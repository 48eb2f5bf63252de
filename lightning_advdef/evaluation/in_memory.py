"""Evaluation of images in memory, without a Trainer and without a run folder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from lightning_advdef.evaluation.diagnostics.probes import PROBED, pick
from lightning_advdef.evaluation.fingerprint import described_images, fingerprint
from lightning_advdef.evaluation.gallery import Gallery, Kept, write_gallery
from lightning_advdef.evaluation.given import as_batch, as_scenarios, require_logits
from lightning_advdef.evaluation.judge import Judge, JudgeSettings
from lightning_advdef.evaluation.result import make_result
from lightning_advdef.evaluation.rows import Rows
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.evaluation.store import GALLERY_FILE, ResultStore, join_rows
from lightning_advdef.evaluation.table import print_table
from lightning_advdef.types import Batch, slices

_WIDTH = 120  # of the printed table


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; printed, it is the table of ``advdef test``.

    Attributes:
        rows: A row per image: the columns of ``robustness.npz``.
        result: Summary, diagnostics and circumstances: the content of ``robustness.json``.
        fingerprint: What makes the result what it is: network, weights, images, scenarios, code.
        examples: The least and the most robust images of each scenario: the content of ``examples.npz``.
    """

    rows: Rows
    result: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    examples: Mapping[str, Kept]

    def __str__(self) -> str:
        """The table."""
        text = io.StringIO()
        print_table({self.fingerprint["model"]["class"]: self.result}, console=Console(file=text, width=_WIDTH))
        return text.getvalue().rstrip()

    @property
    def accuracies(self) -> dict[str, float]:
        """Robust accuracy in [0, 1] by name of the scenario, after ``clean``."""
        robust = {row["name"]: row["robust_accuracy"]["value"] for row in self.result["scenarios"]}
        return {"clean": self.result["clean_accuracy"]["value"]} | robust

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes ``robustness.json``, ``robustness.npz`` and ``examples.npz``, which ``advdef report`` reads.

        Args:
            folder: Result folder.
            overwrite: Replace the result of a different evaluation.

        Returns:
            The folder.

        Raises:
            ResultFolderError: If it holds the result of a different evaluation.
        """
        remedy = "save to another folder, or replace it with save(folder, overwrite=True)"
        store = ResultStore(Path(folder), self.fingerprint, overwrite, remedy)
        store.open()
        write_gallery(self.examples, store.folder / GALLERY_FILE)
        store.finish(self.rows, self.result)
        return store.folder


def evaluate(
    model: nn.Module,
    images: Tensor | NDArray[Any],
    labels: Tensor | NDArray[Any],
    scenarios: Sequence[Scenario] | Scenario | str | Path,
    settings: JudgeSettings | None = None,
    indices: Tensor | NDArray[Any] | None = None,
    mean_image: Tensor | None = None,
    diagnostics: bool = True,
) -> Evaluation:
    """Attacks a network or a defense in every scenario: what ``advdef test`` does, without a Trainer.

    Images follow the model to its device, a batch at a time; its modes, parameters and gradients stay as
    they are. The rows are those of ``advdef test`` on the same images, indices and scenarios.

    Args:
        model: Any module that maps images in [0, 1] to logits, or a :class:`DefenseModule`.
        images: Pixels in [0, 1], float32, shape ``(N, C, H, W)``; these and the next may be NumPy arrays.
        labels: Classes, int64, shape ``(N,)``.
        scenarios: What to run; or the path of a YAML with them, or in a checkout the name of a suite, such as
            ``quick``. ``eps: standard`` is what is usual for the data set that a defense names in ``spec``.
        settings: How verdicts are made.
        indices: What ties random numbers to images, int64, shape ``(N,)``, all different; None for 0 to N-1.
        mean_image: Mean training image ``(C, H, W)``, for norms relative to the centred image.
        diagnostics: Look at up to 32 images again at the end, for what rows cannot tell of a defense.

    Raises:
        ValueError: If the images or scenarios are not such, there is nothing to evaluate, or the network gives no
            logits of at least two classes, or probabilities in their place.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}: wrap it in one")
    batch = as_batch(images, labels, indices)
    judge = Judge(model, as_scenarios(scenarios), settings, mean_image)
    identity = fingerprint(described_images(*batch), model, judge)  # first, as models may count their calls
    judge.watch = gallery = Gallery(judge.scenarios)
    device = next((parameter.device for parameter in model.parameters()), batch.images.device)
    require_logits(model, batch, device, judge.settings)
    judge.look_for_randomness(Batch(*(tensor.to(device) for tensor in pick(batch, PROBED))))
    parts = slices(len(batch.images), judge.settings.batch_size)
    rows = join_rows([judge(Batch(*(tensor[part].to(device) for tensor in batch))) for part in parts])
    probed = Batch(*(tensor.to(device) for tensor in pick(batch))) if diagnostics else None
    return Evaluation(rows, make_result(rows, judge, str(device), 1, probed), identity, gallery.kept)
