"""FAB's step, and how the walk of a batch of images along the decision boundary spends its passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import TracedLogits, traced_logits
from lightning_advdef.attacks.hyperplane import move_to_hyperplane
from lightning_advdef.attacks.lp_ball import lp_norm, per_image
from lightning_advdef.attacks.smallest import Smallest
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm

Boundary = Callable[[TracedLogits, Goal, Tensor], tuple[Tensor, Tensor]]
Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


_SHORTEST = 1e-8  # the authors' floor under the lengths whose ratio is the bias towards the image


def fab_step(
    images: Tensor,
    points: Tensor,
    gaps: Tensor,
    normals: Tensor,
    norm: Norm,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    box: bool = True,
) -> Tensor:
    """Next points: beyond the linearised boundary, and biased towards the point of it that is nearest to the image.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/1907.02044, Eqs. 9 and 10.

    Args:
        images: Clean images, shape ``(N, C, H, W)``.
        points: Where the walk is, same shape.
        gaps: Logit of the other class minus that of the class to leave at the points, shape ``(N,)``.
        normals: Gradients of the gaps, shape ``(N, C, H, W)``.
        norm: ``linf`` or ``l2``.
        alpha_max: Largest bias towards the image.
        eta: How far to step beyond the boundary.
        box: Whether pixels stay in [0, 1].
    """
    flat = normals.flatten(1)
    both = torch.stack([points.flatten(1), images.flatten(1)])
    missing = torch.stack([-gaps, ((both[0] - both[1]) * flat).sum(dim=1) - gaps])
    moves = move_to_hyperplane(both, flat, missing, norm, box)
    lengths = lp_norm(moves.flatten(0, 1), norm).view_as(missing).clamp_min(_SHORTEST)
    alpha = (lengths[0] / lengths.sum(dim=0)).clamp_max(alpha_max)
    ahead, near = both + eta * moves
    moved = torch.lerp(ahead, near, alpha.unsqueeze(1)).view_as(points)
    return moved.clamp(0, 1) if box else moved


class FABWalk:
    """Images on their way to a boundary and along it.

    Each point raises two questions: is it across, and how does the boundary run there? One pass answers both, unless
    the point is across: then the image steps back, and the boundary is wanted elsewhere. Images cross in a pattern
    (every second step, or nearly every one), so each is expected to do what it did the last time it came from the same
    side. Those expected to cross get a first look without gradients, and step back at once. One that crosses
    unexpectedly has no boundary to go by and waits for the next pass. A wrong guess costs a pass and changes no result.

    Args:
        surrogate: The classifier under attack.
        images: Clean images of the whole batch, shape ``(N, C, H, W)``.
        goal: What is wanted of them.
        rng: Their random numbers.
        best: Where what is found goes.
        rows: Images that walk, int64, shape ``(M,)``.
        points: Where they start, shape ``(M, C, H, W)``.
        norm: How distance is measured.
        beta: Which share of the way from the image a step back keeps.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        images: Tensor,
        goal: Goal,
        rng: SampleRNG,
        best: Smallest,
        rows: Tensor,
        points: Tensor,
        norm: Norm,
        beta: float,
    ) -> None:
        self.surrogate, self.best, self.norm, self.beta = surrogate, best, norm, beta
        self.rows, self.goal, self.rng = rows, goal[rows], rng[rows].stream("pass")
        self.origin, self.points = images[rows], points
        self.taken = torch.zeros_like(rows)
        self.walking = ~best.done[rows]
        self.waiting = torch.ones_like(self.walking)
        self.across, self.before, self.unseen = (torch.zeros_like(self.walking) for _ in range(3))
        # whether the image crossed the last time it came from this side, and the last time from across
        self.habit = torch.zeros(len(rows), 2, dtype=torch.bool, device=points.device)

    def run(self, steps: int, step: Step, boundary: Boundary) -> None:
        """Takes so many steps with each image, unless it is done before."""
        self._linearise(boundary, self.rng.stream(0))
        # an image that waits after every step needs twice as many rounds, as it does not wait after the last
        for number in range(1, 2 * steps):
            moved = step(self.origin, self.points, self.gaps, self.normals)
            self.points = torch.where(per_image(self.waiting), self.points, moved)
            self.taken = self.taken + ~self.waiting
            self._look(self.taken == steps, self.rng.stream(number))
            if not self._leave(steps):
                break
            self._linearise(boundary, self.rng.stream(number))
            if not self._leave(steps):
                break
        self.surrogate.working = None

    def _look(self, last: Tensor, rng: SampleRNG) -> None:
        """Asks without gradients whether images that are expected to be across are, and all at their last step."""
        moved = self.walking & ~self.waiting
        expected = self.habit.gather(1, self.across.long().unsqueeze(1)).squeeze(1) | last
        self.before = torch.where(moved, self.across, self.before)
        self.across, self.unseen = self.across & ~moved, moved & ~expected
        at = (moved & expected).nonzero().squeeze(1)
        if len(at):
            images, stream = self.points[at], rng[at]
            if self.surrogate.fixed_shape:
                self._book(moved & expected)
                images, stream = self.points, rng
            with torch.no_grad():
                logits = self.surrogate.mean_logits(images, stream)
            self._judge(at, logits[at] if self.surrogate.fixed_shape else logits, rng)

    def _linearise(self, boundary: Boundary, rng: SampleRNG) -> None:
        """Finds the boundary at every point, and learns on the way which of those not yet looked at are across."""
        self._book(self.walking)
        trace = traced_logits(self.surrogate, self.points, rng)
        at = self.unseen.nonzero().squeeze(1)
        self._judge(at, trace.logits[at], rng)
        self.habit.scatter_(1, self.before.long().unsqueeze(1), self.across.unsqueeze(1))
        self.waiting = self.unseen & self.across
        self.gaps, self.normals = boundary(trace, self.goal, self.walking & ~self.waiting)

    def _judge(self, at: Tensor, logits: Tensor, rng: SampleRNG) -> None:
        """Keeps the closest of the points ``at`` that are across; all that are step back."""
        points, origin = self.points[at], self.origin[at]
        across = self.surrogate.fooled(points, logits, self.goal[at], rng[at])
        sizes = lp_norm(points - origin, self.norm)
        self.best.update(self.rows[at], points, sizes, across)
        back = torch.where(per_image(across), origin + self.beta * (points - origin), points)
        self.points = self.points.index_copy(0, at, back)
        self.across = self.across.index_copy(0, at, across)

    def _book(self, passing: Tensor) -> None:
        """Where the shape is fixed, passes are booked for some of the images alone."""
        if self.surrogate.fixed_shape:
            self.surrogate.working = torch.zeros_like(self.best.done).index_copy_(0, self.rows, passing)

    def _leave(self, steps: int) -> bool:
        """Ends the walk of images that are done or have taken all steps; whether any walks on."""
        self.walking = ~self.best.done[self.rows] & (self.taken < steps)
        left = int(self.walking.sum())
        if left < len(self.walking) and not self.surrogate.fixed_shape:
            stay = self.walking
            self.rows, self.goal, self.rng = self.rows[stay], self.goal[stay], self.rng[stay]
            self.origin, self.points, self.taken = self.origin[stay], self.points[stay], self.taken[stay]
            self.across, self.before, self.unseen = self.across[stay], self.before[stay], self.unseen[stay]
            self.waiting, self.habit, self.walking = self.waiting[stay], self.habit[stay], stay[stay]
            self.gaps, self.normals = self.gaps[stay], self.normals[stay]
        return left > 0
