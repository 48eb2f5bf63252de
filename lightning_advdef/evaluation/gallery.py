"""The least and the most robust images of each scenario, kept with their perturbations while they are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_advdef.attacks import MinimalNormAttack
from lightning_advdef.evaluation.rows import Rows, read_rows
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.evaluation.summary import attack_norm, fooled
from lightning_advdef.files import write_arrays
from lightning_advdef.types import Batch

_EACH_END = 4


class Kept(NamedTuple):
    """Some images of a scenario, the least robust first.

    Attributes:
        indices: Positions in the full split, int64, shape ``(K,)``.
        score: What they are ordered by, float32, shape ``(K,)``: the norm that a minimal-norm attack needed, infinite
            where it failed; otherwise how much the true logit exceeds the best wrong one after the attack.
        clean: Pixels in [0, 1], float16, shape ``(K, C, H, W)``.
        perturbation: What the attack added, float16, same shape; apart from the pixels it keeps its digits.
    """

    indices: Tensor
    score: Tensor
    clean: Tensor
    perturbation: Tensor


class Gallery:
    """Watches a judge and keeps a few images from either end of each scenario.

    Images that are wrong without an attack are left out. The same images are kept whatever the order, the batches and
    the number of processes, since each end is that of all images whose adversarial image was made: what an evaluation
    takes over from an earlier one of a smaller budget has none.

    Args:
        scenarios: What is judged.
        path: File that holds them; what is already there is kept on, so that an interrupted evaluation loses none. None
            if they are not to be saved.
    """

    def __init__(self, scenarios: Sequence[Scenario], path: Path | None = None) -> None:
        self.path = path
        self._scenarios = {scenario.name: scenario for scenario in scenarios}
        self.kept: dict[str, Kept] = {}
        if path is not None and path.is_file():
            self.join(path)

    def __call__(self, scenario: str, batch: Batch, adversarial: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Takes in a judged batch; ``watch`` of a judge."""
        count = len(adversarial)
        mine = {name: column[:count] for name, column in rows.items()}  # strict mode pads batches
        score = robustness_score(mine, self._scenarios[scenario])
        right = (mine["clean/correct"] > 0).nonzero().squeeze(1)
        order = right[_ends(score[right], mine["index"][right])]
        clean = batch.images[:count][order]
        perturbation = adversarial[order] - clean
        self._add(
            scenario,
            Kept(mine["index"][order].cpu(), score[order].cpu(), clean.half().cpu(), perturbation.half().cpu()),
        )

    def join(self, path: Path) -> None:
        """Takes in what another process, or an earlier evaluation of fewer scenarios, has kept."""
        for name, kept in read_gallery(path).items():
            if name in self._scenarios:
                self._add(name, kept)

    def holding(self, rows: Rows) -> dict[str, Kept]:
        """What was kept of these images, and as the rows have it: a part that was added may have broken one since.

        Args:
            rows: Columns of the images, sorted by index.
        """
        found = {}
        for name, kept in self.kept.items():
            places = torch.searchsorted(rows["index"], kept.indices).clamp_max(len(rows["index"]) - 1)
            same = robustness_score(rows, self._scenarios[name])[places] == kept.score
            holds = same & (rows["index"][places] == kept.indices)
            found[name] = Kept(*(column[holds] for column in kept))
        return found

    def _add(self, scenario: str, more: Kept) -> None:
        if scenario in self.kept:
            more = Kept(*(torch.cat(pair) for pair in zip(self.kept[scenario], more, strict=True)))
        # an image that was judged again, after an interruption or by more parts of a cascade, counts as it was last
        _, last = np.unique(more.indices.numpy()[::-1], return_index=True)
        more = Kept(*(column[len(more.indices) - 1 - torch.from_numpy(last)] for column in more))
        self.kept[scenario] = Kept(*(column[_ends(more.score, more.indices)] for column in more))

    def save(self) -> None:
        """Writes the file."""
        assert self.path is not None
        write_gallery(self.kept, self.path)


def robustness_score(rows: Rows, scenario: Scenario) -> Tensor:
    """How robust each image is, larger is more, float32, shape ``(N,)``; see :class:`Kept`."""
    if not isinstance(scenario.attack, MinimalNormAttack):
        return -rows[f"{scenario.name}/margin"].float()
    norms = rows[f"{scenario.name}/{attack_norm(scenario.attack)}"].float()
    return torch.where(fooled(rows, scenario), norms, torch.inf)


def _ends(score: Tensor, index: Tensor) -> Tensor:
    """Positions of the smallest and the largest scores, ascending; of equal ones the first images come first."""
    by_index = index.argsort()
    order = by_index[score[by_index].argsort(stable=True)]
    return order if len(order) <= 2 * _EACH_END else torch.cat([order[:_EACH_END], order[-_EACH_END:]])


def write_gallery(kept: Mapping[str, Kept], path: Path) -> None:
    """Writes what was kept, by name of the scenario, for :func:`read_gallery`."""
    arrays = {f"{name}/{field}": getattr(each, field) for name, each in kept.items() for field in Kept._fields}
    write_arrays(path, arrays, compressed=True)


def read_gallery(path: Path) -> dict[str, Kept]:
    """What was kept, by name of the scenario."""
    columns = read_rows(path, "remove this file, which holds pictures alone, and run the same command again")
    names = dict.fromkeys(key.removesuffix("/indices") for key in columns if key.endswith("/indices"))
    return {name: Kept(*(columns[f"{name}/{field}"] for field in Kept._fields)) for name in names}
