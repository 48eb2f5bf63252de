"""What is left of each image when an attacker picks the best of several scenarios for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_advdef.attacks.base import within_budget
from lightning_advdef.evaluation.rows import robust
from lightning_advdef.metrics import worst_case
from lightning_advdef.types import Norm


def worst_within(rows: Mapping[str, Tensor], scenarios: Sequence[str], norm: Norm, eps: float) -> Tensor:
    """Share of draws on which each image is right under all scenarios together, within one budget.

    Whatever scenario found an image: it counts at every budget that its perturbation does not exceed.

    Args:
        rows: Columns of all images.
        scenarios: Names of those whose perturbed images are images; at least one.
        norm: Of the budget.
        eps: The budget, in pixel units.

    Returns:
        Values in [0, 1], shape ``(N,)``.
    """
    columns = []
    for name in scenarios:
        inside = within_budget(rows[f"{name}/{norm}"], eps, norm)
        columns.append(torch.where(inside, robust(rows, name), rows["clean/correct"]))
    return worst_case(torch.stack(columns))
