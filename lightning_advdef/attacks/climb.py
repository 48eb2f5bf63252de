"""What APGD knows of each image while it climbs, and when it halves the step."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import LossGradient
from lightning_advdef.attacks.lp_ball import LpBall, per_image
from lightning_advdef.rng import SampleRNG


def checkpoint_gaps(steps: int) -> dict[int, int]:
    """Numbers of finished steps at which the step size is looked at, and how many steps each look covers.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, section 3.3, rounded as the authors' code does: gaps
    of 22% of the steps at first, each 3% shorter than the one before, and at least 6%. For 100 steps they are after
    22, 41, 57, 70, 80, 87, 93 and 99.
    """
    gap, shrink, smallest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    gaps, finished = {}, gap
    while finished <= steps:
        gaps[finished] = gap
        gap = max(gap - shrink, smallest)
        finished += gap
    return gaps


@dataclass
class Climb:
    """One run: where every image still in the batch is, the best it has seen, and the length of its next step.

    Attributes:
        rows: Positions of the images in the attack's batch, int64, shape ``(N,)``.
        images: Clean images, shape ``(N, C, H, W)``.
        goal: What is wanted of them.
        rng: Their random numbers.
        ball: Where they may move.
        low: Smallest pixels allowed, broadcasts over the images.
        high: Largest pixels allowed.
        iterates: Where the images are.
        previous: Where they were a step ago.
        gradient: The loss's gradient at the iterates.
        best: Points of highest loss so far, or those that decided their images.
        best_gradient: The gradient at these points.
        best_loss: The loss there, shape ``(N,)``.
        decided: Images whose point is final, bool, shape ``(N,)``.
        step_size: Length of the next step in pixel units, shape ``(N,)``.
        loss: The loss after the latest step, shape ``(N,)``.
        rises: Steps since the last checkpoint that made it rise, shape ``(N,)``.
        halved: Whether the last checkpoint halved the step, bool, shape ``(N,)``.
        best_loss_at_checkpoint: ``best_loss`` at the last checkpoint.
    """

    rows: Tensor
    images: Tensor
    goal: Goal
    rng: SampleRNG
    ball: LpBall
    low: Tensor
    high: Tensor
    iterates: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    decided: Tensor
    step_size: Tensor
    loss: Tensor
    rises: Tensor
    halved: Tensor
    best_loss_at_checkpoint: Tensor

    @classmethod
    def of(cls, rows: Tensor, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall, box: bool) -> Climb:
        """A climb that stands at the images themselves and has seen nothing."""
        nothing = images.new_zeros(len(rows))
        # the ball of linf is a box itself, so that one clamp goes to the nearest point inside both
        reach = ball.radius if ball.norm == "linf" else images.new_full((len(rows), 1, 1, 1), float("inf"))
        low, high = (images - reach, images + reach) if ball.norm == "linf" else (-reach, reach)
        return cls(
            rows=rows,
            images=images,
            goal=goal,
            rng=rng,
            ball=ball,
            low=low.clamp_min(0) if box else low,
            high=high.clamp_max(1) if box else high,
            iterates=images,
            previous=images,
            gradient=images,
            best=images,
            best_gradient=images,
            best_loss=nothing - float("inf"),
            decided=torch.zeros_like(rows, dtype=torch.bool),
            step_size=2 * ball.eps,
            # the authors' history of losses begins with a row of zeros in place of the start point's loss
            loss=nothing,
            rises=nothing,
            # the second condition cannot hold at the first checkpoint
            halved=torch.ones_like(rows, dtype=torch.bool),
            best_loss_at_checkpoint=nothing,
        )

    def keep(self, kept: Tensor) -> None:
        """Forgets all images but those at these positions, int64."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[kept])

    def inside(self, points: Tensor) -> Tensor:
        """Points moved into the ball and then into the pixel box, which never leaves the ball."""
        if self.ball.norm != "linf":
            points = self.images + self.ball.project(points - self.images)
        return points.clamp(self.low, self.high)

    def move(self, momentum: float) -> None:
        """One step of algorithm 1, lines 7 and 8."""
        ahead = torch.addcmul(self.iterates, per_image(self.step_size), self.ball.steepest(self.gradient))
        moved = torch.lerp(self.iterates, self.inside(ahead), momentum)
        moved.add_(self.iterates - self.previous, alpha=1 - momentum)
        self.previous, self.iterates = self.iterates, self.inside(moved)

    def record(self, found: LossGradient, final: Tensor) -> None:
        """Keeps what was found at the iterates, if it is the best so far or (``final``) decides the image."""
        better = ((found.loss > self.best_loss) | final) & ~self.decided
        self.gradient = found.gradient
        self.best = torch.where(per_image(better), self.iterates, self.best)
        self.best_gradient = torch.where(per_image(better), found.gradient, self.best_gradient)
        self.best_loss = torch.where(better, found.loss, self.best_loss)
        self.decided = self.decided | final

    def compare(self, loss: Tensor) -> None:
        """Counts whether the loss rose."""
        self.rises = self.rises + (loss > self.loss)
        self.loss = loss

    def look_back(self, gap: int, rho: float) -> None:
        """At a checkpoint: where the loss rose too rarely or got stuck, back to the best point with half the step.

        As in the authors' code, the previous point stays, so the next step's momentum leads from it to the best point.
        """
        stuck = ~self.halved & (self.best_loss_at_checkpoint >= self.best_loss)
        self.halved = (self.rises <= rho * gap) | stuck
        self.best_loss_at_checkpoint = self.best_loss
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.iterates = torch.where(per_image(self.halved), self.best, self.iterates)
        self.gradient = torch.where(per_image(self.halved), self.best_gradient, self.gradient)
        self.rises = torch.zeros_like(self.rises)
