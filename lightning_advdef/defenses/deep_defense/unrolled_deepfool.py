"""DeepFool that can be differentiated: pass 1 finds the path without a graph, pass 2 replays it with one.

Which class is nearest and when an image stops are piecewise constant in the weights, so the gradient of the replayed
path is the gradient of the whole unrolled attack, at the price of one class gradient per step instead of all.

Source: Yan et al., 2018, "Deep Defense", section 3; DeepFool: Moosavi-Dezfooli et al., 2016,
https://arxiv.org/abs/1511.04599, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_advdef.attacks.deepfool import OVERSHOOT, STABILISER
from lightning_advdef.types import Norm

Network = Callable[[Tensor], Tensor]
SelectRows = Callable[[Tensor | None], None]

# smallest dual norm to divide by, in logits per pixel unit: a dead network gives no step instead of NaN
GRADIENT_FLOOR = 1e-8
# images times classes in one call of autograd; beyond it, batching costs more than it saves (measured on a CPU;
# the other number bounds memory)
ROWS_PER_CALL = {"cpu": 128, "cuda": 4096}


class Step(NamedTuple):
    """One DeepFool step of the images that still run.

    Attributes:
        rows: Position of each of them in the batch, int64, shape ``(M,)``.
        target: Class k* to move to, int64, shape ``(M,)``.
        reference: Class a to move away from, int64, shape ``(M,)``.
    """

    rows: Tensor
    target: Tensor
    reference: Tensor


class Path(NamedTuple):
    """What pass 1 finds, without graph.

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
    class, away from the strongest other class of the current point. Both stop when ``x + (1 + overshoot) * Delta``
    is classified as they want it.

    Args:
        network: Images to logits ``(N, K)``, one image at a time as it were (batch norm in eval mode).
        images: Pixels, shape ``(N, C, H, W)``; iterates are not clamped, as in the paper.
        labels: True classes, int64, shape ``(N,)``.
        steps: Steps at most (u).
        norm: Norm that the steps minimise.
        candidates: How many classes a correct image may move to, those of highest score at the unperturbed image;
            ``None`` for all but its own.
        overshoot: Share added to Delta before it is judged and returned.
        select: Called before each forward with the positions in the batch of the images it gets, ``None`` for all of
            them in order; for example ``SharedDropoutMasks.select``.

    Returns:
        The path, for ``replay``.
    """
    images, forward = images.detach(), _SelectingNetwork(network, select)
    with torch.no_grad():
        logits = forward(images, None)
        predicted = logits.argmax(1)
        correct = predicted == labels
        ranked = _rank_candidates(logits, predicted, candidates)
        delta, fooled = torch.zeros_like(images), torch.zeros_like(correct)
        path: list[Step] = []
        while len(path) < steps and not fooled.all():
            running = ~fooled
            parts = [
                _plan_step(forward, images + delta, (running & correct).nonzero()[:, 0], ranked, predicted, norm),
                _plan_step(forward, images + delta, (running & ~correct).nonzero()[:, 0], labels[:, None], None, norm),
            ]
            step = Step(*(torch.cat(column) for column in zip(*(part for part, _ in parts), strict=True)))
            rows = step.rows
            delta = delta.index_add(0, rows, torch.cat([move for _, move in parts]))
            now = forward((images + (1 + overshoot) * delta)[rows], rows).argmax(1)
            fooled[rows] = torch.where(correct[rows], now != predicted[rows], now == labels[rows])
            path.append(step)
    forward.reset()
    return Path(logits, correct, tuple(path), fooled, (1 + overshoot) * delta, norm, overshoot)


def replay(network: Network, images: Tensor, path: Path, *, select: SelectRows | None = None) -> Tensor:
    """Pass 2: the perturbation of a path, differentiable by the parameters of the network to any step.

    Args:
        network: The network that the path was planned on.
        images: The images that it was planned for, shape ``(N, C, H, W)``.
        path: What ``plan_paths`` gave.
        select: As in ``plan_paths``.

    Returns:
        ``(1 + overshoot) * Delta`` in pixel units, shape of the images.
    """
    images, forward = images.detach(), _SelectingNetwork(network, select)
    delta = torch.zeros_like(images)
    with torch.enable_grad():
        for rows, target, reference in path.steps:
            points = images[rows] + delta[rows]
            if not points.requires_grad:
                points.requires_grad_()
            logits = forward(points, rows)
            gap = (logits.gather(1, target[:, None]) - logits.gather(1, reference[:, None]))[:, 0]
            (gradient,) = torch.autograd.grad(gap.sum(), points, create_graph=True)
            delta = delta.index_add(0, rows, deepfool_move(gap, gradient, path.norm))
        perturbation = (1 + path.overshoot) * delta
    forward.reset()
    return perturbation


def deepfool_move(gap: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """Smallest move to the linearised boundary ``gap + <gradient, move> = 0``, for a gap below 0.

    Source: Deep Defense, Eq. 2 with the squared norm that solves Eq. 1 (the printed one has the first power);
    other norms by Moosavi-Dezfooli et al., 2016, section 3.3.

    Args:
        gap: Score of the target minus that of the reference class, shape ``(M,)``. As in DeepFool its absolute
            value counts: past the boundary the move goes on.
        gradient: Its gradient by the image, shape ``(M, C, H, W)``.
        norm: Norm to minimise.

    Returns:
        The move in pixel units, shape of the gradient.

    Note:
        ``STABILISER`` is added to the gap, ``GRADIENT_FLOOR`` bounds the dual norm; the paper has neither.
    """
    flat = gradient.flatten(1)
    size = _distance(gap, gradient, norm)[:, None]
    if norm == "l2":
        direction = flat / _dual_norm(flat, norm)[:, None]
    elif norm == "linf":
        direction = flat.sign()
    else:
        largest = flat.detach().abs().argmax(1, keepdim=True)
        direction = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign())
    return (size * direction).view_as(gradient)


def _distance(gap: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """Distance to the linearised boundary, shape ``(M,)``."""
    return (gap.abs() + STABILISER) / _dual_norm(gradient.flatten(1), norm)


def _dual_norm(flat: Tensor, norm: Norm) -> Tensor:
    if norm == "l1":
        return flat.abs().amax(1).clamp_min(GRADIENT_FLOOR)
    size: Tensor = torch.linalg.vector_norm(flat, 2 if norm == "l2" else 1, dim=1)
    return size.clamp_min(GRADIENT_FLOOR)


class _SelectingNetwork:
    """A network that is told before each forward which rows of the batch come, and runs in full precision."""

    def __init__(self, network: Network, select: SelectRows | None) -> None:
        self._network = network
        self._select = select

    def __call__(self, images: Tensor, rows: Tensor | None) -> Tensor:
        if self._select is not None:
            self._select(rows)
        # differences of logits near zero are lost in bf16
        with torch.autocast(images.device.type, enabled=False):
            return self._network(images)

    def reset(self) -> None:
        """Selects the whole batch again, for the forwards of others."""
        if self._select is not None:
            self._select(None)


def _rank_candidates(logits: Tensor, predicted: Tensor, candidates: int | None) -> Tensor:
    """The classes of highest score without the predicted one, int64, shape ``(N, candidates)``."""
    others = logits.scatter(1, predicted[:, None], -torch.inf)
    count = logits.shape[1] - 1
    return others.topk(count if candidates is None else min(candidates, count)).indices


def _plan_step(
    forward: _SelectingNetwork, points: Tensor, rows: Tensor, targets: Tensor, predicted: Tensor | None, norm: Norm
) -> tuple[Step, Tensor]:
    """The step of some rows to the nearest of their ``targets`` ``(N, T)``, and the move that it makes.

    Without ``predicted`` the reference class is the strongest other class of the point.
    """
    if not len(rows):
        return Step(rows, rows, rows), points[rows]
    with torch.enable_grad():
        points = points[rows].requires_grad_()
        logits, targets = forward(points, rows), targets[rows]
        strongest_other = logits.scatter(1, targets, -torch.inf).argmax(1)
        reference = strongest_other if predicted is None else predicted[rows]
        gaps = logits.gather(1, targets) - logits.gather(1, reference[:, None])
    nearest, choice = gaps.new_full((len(rows),), torch.inf), torch.zeros_like(rows)
    gradient = torch.zeros_like(points)
    for column, candidate in _gradients(gaps, points):
        distance = _distance(gaps[:, column], candidate, norm)
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        choice = torch.where(closer, column, choice)
        gradient = torch.where(closer.view(-1, *[1] * (points.ndim - 1)), candidate, gradient)
    gap, target = (scores.gather(1, choice[:, None])[:, 0] for scores in (gaps, targets))
    return Step(rows, target, reference), deepfool_move(gap, gradient, norm)


def _gradients(gaps: Tensor, points: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Gradient by the points of each column of ``gaps`` ``(M, T)``, several columns per call if they are small."""
    rows, columns = gaps.shape
    chunk = max(1, ROWS_PER_CALL.get(points.device.type, 128) // rows)
    for first in range(0, columns, chunk):
        wanted = range(first, min(first + chunk, columns))
        more = wanted.stop < columns
        cotangents = torch.eye(columns, dtype=gaps.dtype, device=gaps.device)[first : wanted.stop]
        cotangents = cotangents[:, None].expand(-1, rows, -1)
        if len(wanted) == 1:
            yield first, torch.autograd.grad(gaps, points, cotangents[0], retain_graph=more)[0]
        else:
            batch = torch.autograd.grad(gaps, points, cotangents, retain_graph=more, is_grads_batched=True)[0]
            yield from zip(wanted, batch, strict=True)
