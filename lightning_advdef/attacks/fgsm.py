"""FGSM and FGM: one step of full length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_advdef.attacks.base import FixedBudgetAttack
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import loss_and_gradient
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.attacks.lp_ball import LpBall
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm


@dataclass(frozen=True)
class FGSM(FixedBudgetAttack):
    """Fast gradient sign method: one step of length eps along the steepest ascent of the cross-entropy.

    Source: Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572. One gradient per image.
    """

    targetable: ClassVar[bool] = True

    def cost(self, classes: int) -> Cost:
        """One gradient."""
        return Cost(1, 1)

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """``x + eps * steepest(gradient)``."""
        gradient = loss_and_gradient(surrogate, images, goal, cross_entropy, rng).gradient
        return images + ball.radius * ball.steepest(gradient)


@dataclass(frozen=True)
class FGM(FGSM):
    """Fast gradient method: FGSM with the l2 norm by default."""

    norm: Norm = "l2"
