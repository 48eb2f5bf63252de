"""Parseval networks: after each optimizer step, weights move towards a tight frame."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_advdef.defenses.base import DefenseModule, global_seed
from lightning_advdef.models import NetworkFactory
from lightning_advdef.rng import SampleRNG

Axis = Literal["rows", "columns"]


def parseval_step(matrix: Tensor, beta: float) -> Tensor:
    """One gradient step on ``beta / 4 |W W^T - I|^2``, whose minima have orthonormal rows (or columns, if fewer).

    Source: Cisse et al., 2017, "Parseval Networks", https://arxiv.org/abs/1704.08847:
    ``W <- (1 + beta) W - beta W W^T W``.

    Args:
        matrix: ``W``, shape ``(rows, columns)``.
        beta: Size of the step.

    Returns:
        The new matrix, same shape.
    """
    product: Tensor = torch.linalg.multi_dot([matrix, matrix.T, matrix])
    return (1 + beta) * matrix - beta * product


class ParsevalModule(DefenseModule):
    """Cross-entropy, and after each optimizer step a Parseval step on a random part of every weight matrix.

    Source: Cisse et al., 2017, https://arxiv.org/abs/1704.08847, algorithm 1; every convolution and linear layer, the
    last too. A convolution is the matrix ``(out, in * k * k)``; since unfolding repeats each input up to ``k * k``
    times, the kernel is the orthonormal matrix divided by ``sqrt(k * k)``.

    The defaults are those of Deep Defense (Yan et al., 2018, https://arxiv.org/abs/1803.00404) for MNIST. It draws 30%
    of the columns without saying of which layout; the algorithm of the Parseval paper draws rows of this one.

    Note:
        The paper also makes every sum of branches a convex combination. That matters for residual networks alone: MLP,
        LeNet, ConvNet and NIN have no such sums, and those of ``ResNet`` stay as they are.

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        beta: Size of the Parseval step; weights diverge where it exceeds ``2 / s^2``, s the largest singular value.
        share: Part of the rows (or columns) of each matrix that takes part in a step, in (0, 1].
        axis: Whether rows or columns are drawn.
        kwargs: See :class:`DefenseModule`.

    Raises:
        ValueError: If beta is not positive or share is not in (0, 1].
    """

    def __init__(
        self, network: NetworkFactory, beta: float = 1e-4, share: float = 0.3, axis: Axis = "rows", **kwargs: Any
    ) -> None:
        super().__init__(network, **kwargs)
        if beta <= 0 or not 0 < share <= 1:
            raise ValueError(f"Parseval training needs beta > 0 and a share in (0, 1], got {beta} and {share}")
        self.beta = beta
        self.share = share
        self.axis = axis

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, then the Parseval step; callbacks that average weights see both."""
        super().optimizer_step(*args, **kwargs)
        self.tighten(self.global_step)

    @torch.no_grad()
    def tighten(self, step: int) -> None:
        """One Parseval step on each layer; which rows take part depends on seed, layer and number of the step."""
        dim = 0 if self.axis == "rows" else 1
        for name, layer in self.classifier.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                scale = prod(layer.kernel_size) ** 0.5 if isinstance(layer, nn.Conv2d) else 1.0
                matrix = layer.weight.flatten(1)
                chosen = self._draw(matrix.shape[dim], step, name, matrix.device)
                part = parseval_step(scale * matrix.index_select(dim, chosen), self.beta) / scale
                layer.weight.copy_(matrix.index_copy(dim, chosen, part).view_as(layer.weight))

    def _draw(self, lines: int, step: int, name: str, device: torch.device) -> Tensor:
        """Some of the lines of a matrix, int64; the same on every process and in a resumed run."""
        rng = SampleRNG.for_images(torch.arange(lines, device=device), global_seed(), "parseval", step).stream(name)
        return rng.uniform(1).squeeze(1).argsort(stable=True)[: max(1, round(self.share * lines))]
