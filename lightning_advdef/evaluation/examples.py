"""Adversarial images beside the clean ones: those of a file, or those that an evaluation kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.gallery import Kept
from lightning_advdef.evaluation.rows import Rows, read_rows
from lightning_advdef.evaluation.run import Run


class Examples(NamedTuple):
    """Some images of a scenario.

    Attributes:
        title: Run and scenario.
        clean: Pixels in [0, 1], shape ``(N, C, H, W)``.
        adversarial: The same images attacked, same shape.
        classes: Label, prediction of the clean and of the adversarial image, shape ``(N, 3)``.
    """

    title: str
    clean: Tensor
    adversarial: Tensor
    classes: Tensor


def examples_of(gallery: Mapping[str, Kept], rows: Rows) -> dict[str, Examples]:
    """What an evaluation kept of its images, by scenario, the least robust first.

    Args:
        gallery: Images of each scenario.
        rows: Columns of all images.
    """
    return {name: _shown(name, kept, rows) for name, kept in gallery.items() if len(kept.indices)}


def _shown(name: str, kept: Kept, rows: Rows) -> Examples:
    places = torch.searchsorted(rows["index"], kept.indices)
    columns = [rows[column][places] for column in ("label", "clean/prediction", f"{name}/prediction")]
    clean = kept.clean.float()
    return Examples(name, clean, clean + kept.perturbation.float(), torch.stack(columns, dim=1))


def images(runs: Sequence[Run], scenario: str | None = None, count: int = 8) -> list[Examples]:
    """The first images that ``advdef predict --evaluation.write`` wrote in each run.

    Args:
        runs: Runs with such files.
        scenario: Whose images; None for all files of a run, by name.
        count: How many images of each.

    Raises:
        ResultFolderError: If a run has no such file.
    """
    wanted = "*" if scenario is None else scenario.replace("/", "_")
    found = []
    for run in runs:
        paths = sorted(run.folder.glob(f"adversarial_{wanted}.npz"))
        if not paths:
            raise ResultFolderError(
                f"no adversarial_{wanted}.npz in {run.folder}: run advdef predict ... --evaluation.write SCENARIO first"
            )
        found += [_read(run, path.stem.removeprefix("adversarial_"), count) for path in paths]
    return found


def _read(run: Run, name: str, count: int) -> Examples:
    remedy = "run advdef predict ... --evaluation.write again, which replaces it"
    arrays = read_rows(run.folder / f"adversarial_{name}.npz", remedy)
    classes = torch.stack([arrays[column][:count] for column in ("y_test", "clean_prediction", "prediction")], dim=1)
    clean, adversarial = (arrays[key][:count] for key in ("x_clean", "x_test"))
    return Examples(f"{run.title}: {name}", clean, adversarial, classes)
