"""FGSM and FGM: one step of full length, from the image or from a random point of the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_advdef.attacks.base import FixedBudgetAttack, require_step
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import loss_and_gradient
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.attacks.lp_ball import LpBall
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Eps, Norm


@dataclass(frozen=True)
class FGSM(FixedBudgetAttack):
    """Fast gradient sign method: one step of length eps along the steepest ascent of the cross-entropy.

    Source: Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572. One gradient per image. In l1 the pixels of
    largest gradient go to their bounds until eps is spent, see :meth:`LpBall.ascend`; without a ``box`` one takes all.
    """

    targetable: ClassVar[bool] = True

    def cost(self, classes: int) -> Cost:
        """One gradient."""
        return Cost(1, 1)

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """One ascent of length eps."""
        gradient = loss_and_gradient(surrogate, images, goal, cross_entropy, rng).gradient
        return ball.ascend(images, gradient, ball.eps, self.box)


@dataclass(frozen=True)
class FGM(FGSM):
    """Fast gradient method: FGSM with the l2 norm by default."""

    norm: Norm = "l2"


@dataclass(frozen=True)
class RandomStartFGSM(FGSM):
    """FGSM from a random point of the ball, whose step may be longer than eps and is projected back: Fast AT's attack.

    Source: Wong et al., 2020, https://arxiv.org/abs/2001.03994, algorithm 3. One gradient per image, at the start; what
    is returned is never looked at.

    Args:
        step_size: Length of the step in pixel units, in the attack's norm; None for the authors' 1.25 eps.
    """

    relative_step: ClassVar[float] = 1.25

    step_size: Eps | None = None

    def __post_init__(self) -> None:
        """Checks the step size, too."""
        super().__post_init__()
        if self.step_size is not None:
            object.__setattr__(self, "step_size", require_step(self.step_size))

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """``x + project(start + step_size * steepest(gradient at x + start))``."""
        start = self.clip(images + ball.random(rng.stream("start"), images.shape[1:]))
        gradient = loss_and_gradient(surrogate, start, goal, cross_entropy, rng.stream("step")).gradient
        relative = ball.eps * self.relative_step
        length = relative if self.step_size is None else torch.full_like(relative, self.step_size)
        return images + ball.project(ball.ascend(start, gradient, length, self.box) - images)
