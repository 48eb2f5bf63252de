"""PGD and BIM: projected steepest ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_advdef.attacks.base import Attack, FixedBudgetAttack, refuse_parts, require_positive, require_step
from lightning_advdef.attacks.best import BestIterates, steps_between_syncs
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import last_look, loss_and_gradient, reference_cost, with_reference
from lightning_advdef.attacks.losses import COMPARING, LOSSES, LossName
from lightning_advdef.attacks.lp_ball import LpBall
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Eps


@dataclass(frozen=True)
class PGD(FixedBudgetAttack):
    """Projected gradient descent from a random start.

    Source: Madry et al., 2018, https://arxiv.org/abs/1706.06083. ``steps`` gradients and one forward pass per image and
    restart; images that are fooled leave where that cannot change the verdict. What a step is in l1, where one pixel
    cannot take a long one, says :meth:`LpBall.ascend`.

    Args:
        steps: Gradient steps of each restart.
        step_size: Length of a step in pixel units, in the attack's norm; None for ``relative_step`` eps / steps, with
            the authors' 2.5.
        restarts: Runs from new starts, on the images not fooled so far.
        random_start: Start at a uniformly random point of the ball instead of the image.
        loss: What is maximised.
        start: Attack whose result is where the search begins, projected onto the ball, in place of a random start.
    """

    targetable: ClassVar[bool] = True
    relative_step: ClassVar[float] = 2.5

    steps: int = 40
    step_size: Eps | None = None
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "cross_entropy"
    start: Attack | None = None

    def __post_init__(self) -> None:
        """Checks steps, restarts, loss, step size and start."""
        super().__post_init__()
        refuse_parts(self.start, f"start of {type(self).__name__}")
        require_positive(steps=self.steps, restarts=self.restarts)
        if self.loss in COMPARING and not self.random_start and self.start is None:
            raise ValueError(
                f"{type(self).__name__} with loss {self.loss} would stay at the image, where its gradient is zero: set "
                "random_start to true or give a start"
            )
        if self.step_size is not None:
            object.__setattr__(self, "step_size", require_step(self.step_size))

    def cost(self, classes: int) -> Cost:
        """A gradient per step and a last look, for each restart; and what the start costs."""
        own = Cost(self.steps + 1, self.steps)
        each = own if self.start is None else own.plus(self.start.cost(classes))
        return each.times(self.restarts).plus(reference_cost(self.loss))

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """Runs all restarts; an image decided by an earlier one is left alone."""
        goal = with_reference(surrogate, images, goal, self.loss, rng)
        best = BestIterates(images)
        for restart in range(self.restarts):
            rows = best.open_rows(surrogate.may_compact)
            if not len(rows):
                break
            self._run(surrogate, images, goal, rng.stream("restart", restart), ball, rows, best)
        return best.images

    def _run(
        self,
        surrogate: Surrogate,
        images: Tensor,
        goal: Goal,
        rng: SampleRNG,
        ball: LpBall,
        rows: Tensor,
        best: BestIterates,
    ) -> None:
        """One restart over the images at ``rows``; what it finds goes to ``best``."""
        loss = LOSSES[self.loss]
        with surrogate.enlisting(~best.decided):
            iterates = self._start(surrogate, images[rows], goal[rows], rng[rows], ball[rows])
        every = steps_between_syncs(images)
        direction: Tensor | None = None
        for step in range(self.steps):
            surrogate.leave_out(best.decided)
            stream = rng[rows].stream("step", step)
            found = loss_and_gradient(surrogate, iterates, goal[rows], loss, stream)
            final = surrogate.final(iterates, found.logits, goal[rows], stream)
            best.update(rows, iterates, found.loss, final)
            direction = self._direction(found.gradient, direction)
            iterates = self._step(images[rows], iterates, direction, ball[rows])
            if surrogate.may_compact and step % every == 0:
                keep = ~best.decided[rows]
                rows, iterates, direction = rows[keep], iterates[keep], direction[keep]
                if not len(rows):
                    return
        surrogate.leave_out(best.decided)
        stream = rng[rows].stream("step", self.steps)
        found = last_look(surrogate, iterates, goal[rows], loss, stream)
        best.update(rows, iterates, found.loss, surrogate.final(iterates, found.logits, goal[rows], stream))
        surrogate.working = None

    def _start(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        if self.start is not None:
            found = self.start.perturb(surrogate, images, goal, rng.stream("start"))
            return self.clip(images + ball.project(found - images))
        if not self.random_start:
            return images
        return self.clip(images + ball.random(rng.stream("start"), images.shape[1:]))

    def _direction(self, gradient: Tensor, previous: Tensor | None) -> Tensor:
        """What the step follows, ``(M, C, H, W)``, given what the step before followed (None at the first)."""
        return gradient

    def _step(self, images: Tensor, iterates: Tensor, direction: Tensor, ball: LpBall) -> Tensor:
        relative = ball.eps * (self.relative_step / self.steps)
        length = relative if self.step_size is None else torch.full_like(relative, self.step_size)
        moved = ball.ascend(iterates, direction, length, self.box)
        return self.clip(images + ball.project(moved - images))


@dataclass(frozen=True)
class BIM(PGD):
    """Basic iterative method: PGD from the image itself, with steps of eps / steps.

    Source: Kurakin et al., 2017, https://arxiv.org/abs/1607.02533.
    """

    relative_step: ClassVar[float] = 1.0

    steps: int = 10
    random_start: bool = False
