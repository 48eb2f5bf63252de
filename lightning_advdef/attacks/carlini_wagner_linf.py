"""Carlini and Wagner's margin inside an linf ball, by a change of variables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_advdef.attacks.adam import ImageAdam
from lightning_advdef.attacks.base import FixedBudgetAttack
from lightning_advdef.attacks.best import BestIterates, steps_between_syncs
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import last_look, loss_and_gradient
from lightning_advdef.attacks.losses import margin
from lightning_advdef.attacks.lp_ball import LpBall, per_image
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.attacks.tanh_box import TanhBox
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm


@dataclass(frozen=True)
class CarliniWagnerLinf(FixedBudgetAttack):
    """Raises the margin by Adam, over variables whose tanh cannot leave the linf ball and the pixel range.

    Source: loss and change of variables of Carlini and Wagner, 2017, https://arxiv.org/abs/1608.04644, with the ball as
    the range of the tanh, as early versions of the Adversarial Robustness Toolbox had it (``CarliniLInfMethod``). It is
    not the paper's own linf attack, which lowers the radius step by step. Defaults: 20 iterations with step 0.03.

    Departures: Adam, and the ends of the tanh, see :class:`TanhBox`. The variables move by about ``steps`` times
    ``learning_rate``: by 0.6 at the defaults, which is 60% of eps. A larger rate uses all of it.

    Args:
        steps: Gradient steps.
        learning_rate: Adam's.
        confidence: Margin in logits beyond which it is not raised further (kappa); matters where fooling the surrogate
            does not decide an image, as in transfer.
    """

    targetable: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    steps: int = 20
    learning_rate: float = 0.03
    confidence: float = 0.0

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        if self.steps < 1 or not 0 < self.learning_rate < math.inf or not 0 <= self.confidence < math.inf:
            raise ValueError(
                "CarliniWagnerLinf needs steps >= 1, learning_rate > 0 and confidence >= 0, "
                f"got {self.steps}, {self.learning_rate} and {self.confidence}"
            )

    def cost(self, classes: int) -> Cost:
        """A gradient per step and a last look."""
        return Cost(self.steps + 1, self.steps)

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """All steps on the images that are not decided."""
        best = BestIterates(images)
        box, rows = self._box(images, ball), torch.arange(len(images), device=images.device)
        iterates, variables, adam = images, box.variables(images), ImageAdam(images, self.learning_rate)
        every = steps_between_syncs(images)
        for step in range(self.steps):
            surrogate.leave_out(best.decided)
            stream = rng[rows].stream("step", step)
            found = loss_and_gradient(surrogate, iterates, goal[rows], margin, stream)
            best.update(rows, iterates, found.loss, surrogate.final(iterates, found.logits, goal[rows], stream))
            # not the loss, to which an adaptive surrogate adds its own
            short = per_image(margin(found.logits, goal[rows]) < self.confidence)
            move = adam.step(-found.gradient * box.pixels(variables)[1] * short)
            variables = box.keep(variables + move)
            if surrogate.may_compact and step % every == 0:
                keep = ~best.decided[rows]
                rows, variables, adam, box = rows[keep], variables[keep], adam[keep], box[keep]
                if not len(rows):
                    return best.images
            iterates = box.pixels(variables)[0]
        surrogate.leave_out(best.decided)
        stream = rng[rows].stream("step", self.steps)
        found = last_look(surrogate, iterates, goal[rows], margin, stream)
        best.update(rows, iterates, found.loss, surrogate.final(iterates, found.logits, goal[rows], stream))
        surrogate.working = None
        return best.images

    def _box(self, images: Tensor, ball: LpBall) -> TanhBox:
        """The ball's and the pixels' bounds together."""
        return TanhBox.between(self.clip(images - ball.radius), self.clip(images + ball.radius))
