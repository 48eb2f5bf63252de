"""Random noise of an attack's size: what a perturbation does that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_advdef.attacks.base import FixedBudgetAttack, Needs, require_positive
from lightning_advdef.attacks.best import BestIterates
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import mean_loss
from lightning_advdef.attacks.losses import margin
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm, per_image
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.errors import require_choice
from lightning_advdef.rng import SampleRNG

Kind = Literal["uniform", "sign", "gaussian"]


@dataclass(frozen=True)
class Noise(FixedBudgetAttack):
    """Control experiment: a random perturbation inside the budget of an attack.

    Accuracy under noise is what an attack's result has to be compared with; a defense that gains only here has not
    become robust. One draw asks nothing of the network. Of more draws the one of highest margin is returned, and an
    exact surrogate is asked no further once it is fooled.

    Args:
        kind: ``sign`` moves every pixel by the same amount up or down, which is all the budget allows in linf and l1
            and l2 noise of the full budget; ``gaussian`` is normal noise scaled to norm eps, and for linf normal noise
            of standard deviation eps cut off at eps (scaled to its largest entry it would shrink as images grow);
            ``uniform`` is a uniformly random point of the ball.
        draws: Perturbations tried for each image.
    """

    kind: Kind = "uniform"
    draws: int = 1

    def __post_init__(self) -> None:
        """Checks kind and draws."""
        super().__post_init__()
        require_choice("kind", self.kind, Kind)
        require_positive(draws=self.draws)

    @property
    def needs(self) -> Needs:
        """Nothing for one draw; scores to choose among several."""
        return "nothing" if self.draws == 1 else "scores"

    def cost(self, classes: int) -> Cost:
        """One draw is not even looked at."""
        return Cost(self.draws if self.draws > 1 else 0, 0)

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """Adds noise; of several draws the best for each image."""
        if self.draws == 1:
            return self._noisy(images, rng.stream("draw", 0), ball)
        best = BestIterates(images)
        with torch.no_grad():
            for draw in range(self.draws):
                self._try(surrogate, images, goal, rng.stream("draw", draw), ball, best)
        surrogate.working = None
        return best.images

    def _try(
        self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall, best: BestIterates
    ) -> None:
        """One draw for the images that are not decided."""
        rows = best.open_rows(surrogate.may_compact)
        if not len(rows):
            return
        surrogate.leave_out(best.decided)
        noisy = self._noisy(images[rows], rng[rows], ball[rows])
        loss, logits = mean_loss(surrogate, noisy, goal[rows], margin, rng[rows])
        best.update(rows, noisy, loss, surrogate.final(noisy, logits, goal[rows], rng[rows]))

    def _noisy(self, images: Tensor, rng: SampleRNG, ball: LpBall) -> Tensor:
        shape = images.shape[1:]
        if self.kind == "uniform":
            return self.clip(images + ball.random(rng, shape))
        noise = rng.signs(*shape) if self.kind == "sign" else rng.normal(*shape)
        if self.norm == "linf":
            return self.clip(images + ball.project(noise * ball.radius))
        return self.clip(images + noise / per_image(lp_norm(noise, self.norm)) * ball.radius)
