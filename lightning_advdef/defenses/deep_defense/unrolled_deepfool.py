"""DeepFool that can be differentiated: pass 1 finds the path without a graph, pass 2 replays it with one.

Which class is nearest and when an image stops are piecewise constant in the weights, so the gradient of the replayed
path is the gradient of the whole unrolled attack, at the price of one class gradient per step instead of all.

Source: Yan et al., 2018, "Deep Defense", section 3.3; DeepFool: Moosavi-Dezfooli et al., 2016,
https://arxiv.org/abs/1511.04599, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_advdef.types import Norm

Network = Callable[[Tensor], Tensor]
SelectRows = Callable[[Tensor | None], None]

OVERSHOOT = 0.02
# added to the logit gap, so that a step crosses the boundary that it would only reach
GAP_GUARD = 1e-5
# smallest dual norm to divide by, in logits per pixel unit: a dead network gives no step instead of NaN
GRADIENT_FLOOR = 1e-8
# with fewer images, one batched call of autograd costs less than one call per class (measured on CPU)
FEW_IMAGES = 32


class Step(NamedTuple):
    """One DeepFool step of the images that still run.

    Attributes:
        rows: Position of each of them in the batch, int64, shape ``(M,)``, ascending.
        target: Class k* to move to, int64, shape ``(M,)``.
        reference: Class a to move away from, int64, shape ``(M,)``.
    """

    rows: Tensor
    target: Tensor
    reference: Tensor


class Path(NamedTuple):
    """What pass 1 decides, without graph.

    Attributes:
        logits: Scores of the unperturbed images, shape ``(N, K)``.
        correct: Whether they are classified right (the set T; the others are F), shape ``(N,)``.
        steps: The steps in order; images leave when they reach their goal.
        fooled: Whether the goal was reached within the steps, shape ``(N,)``: another class for T, the true one for F.
        perturbation: ``(1 + overshoot) * Delta`` in pixel units, shape of the images.
        norm: Norm that the steps minimise.
        overshoot: How much farther than Delta the perturbation goes.
    """

    logits: Tensor
    correct: Tensor
    steps: tuple[Step, ...]
    fooled: Tensor
    perturbation: Tensor
    norm: Norm
    overshoot: float

    @property
    def steps_taken(self) -> Tensor:
        """Number of steps of each image, int64, shape ``(N,)``."""
        taken = torch.zeros_like(self.correct, dtype=torch.int64)
        for step in self.steps:
            taken[step.rows] += 1
        return taken


def plan_paths(
    network: Network,
    images: Tensor,
    labels: Tensor,
    steps: int = 5,
    *,
    norm: Norm = "l2",
    candidates: int | None = None,
    overshoot: float = OVERSHOOT,
    select: SelectRows | None = None,
) -> Path:
    """Pass 1: the DeepFool path of each image, without graph.

    A correct image leaves its predicted class towards the nearest of its candidates. A wrong one moves to its true
    class, away from the strongest other class at the current point. Both stop when ``x + (1 + overshoot) * Delta``
    is where they should be.

    Args:
        network: Images to logits; must treat images independently (batch norm in eval mode).
        images: Pixels, shape ``(N, C, H, W)``; iterates are not clamped, as in the paper.
        labels: True classes, int64, shape ``(N,)``.
        steps: Steps at most (u).
        norm: Norm of the perturbation to minimise.
        candidates: How many classes beside the predicted one a correct image may move to, those of highest score at
            the unperturbed image; ``None`` for all.
        overshoot: Share added to Delta before it is judged and returned.
        select: Called before each forward with the positions in the batch of the images it gets, ``None`` for all of
            them in order; for example ``SharedDropoutMasks.select``.

    Returns:
        The path, for ``replay``.
    """
    images = images.detach()
    with torch.no_grad(), _float32(images):
        logits = _forward(network, images, None, select)
    predicted = logits.argmax(1)
    correct = predicted == labels
    ranked = _rank(logits, predicted, candidates)
    delta, fooled, path = torch.zeros_like(images), torch.zeros_like(correct), []
    with _float32(images):
        for _ in range(steps):
            step = _plan_step(network, images, delta, ~fooled, ranked, predicted, labels, correct, norm, select)
            if step is None:
                break
            path.append(step)
            current = _predict(network, images + (1 + overshoot) * delta, step.rows, select)
            fooled[step.rows] = current != predicted[step.rows]
    _reset(select)
    return Path(logits, correct, tuple(path), fooled, (1 + overshoot) * delta, norm, overshoot)
