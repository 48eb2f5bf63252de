"""An attack sent towards a class that is chosen for each image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor

from lightning_advdef.attacks.base import FixedBudgetAttack, Needs, refuse_parts
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.lp_ball import LpBall
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.errors import require_choice
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Eps, Norm

Choice = Literal["random", "least_likely", "runner_up"]


@dataclass(frozen=True)
class Targeted(FixedBudgetAttack):
    """Runs an attack towards a wrong class of each image; only that class is success for the attack.

    Source of the least likely class: Kurakin et al., 2017, https://arxiv.org/abs/1607.02533, section 2.3; of the random
    one: Carlini and Wagner, 2017, https://arxiv.org/abs/1608.04644 (the "average case"). The result counts as
    any other does, by whether the true class is still predicted. Costs one forward pass beyond the inner attack.

    Args:
        attack: Inner attack, one that has a targeted variant; its budget is the budget.
        choose: ``random``: each wrong class with equal chance; ``least_likely`` or ``runner_up``: the wrong class of
            the lowest or the highest score on the clean image.
        box: Keep pixels in [0, 1], also in the inner attack.

    Raises:
        ValueError: If the inner attack has no targeted variant, or is made of parts.
    """

    eps: Eps = field(init=False, repr=False)
    norm: Norm = field(init=False, repr=False)
    attack: FixedBudgetAttack = field()
    choose: Choice = "random"

    def __post_init__(self) -> None:
        """Takes the budget from the inner attack."""
        refuse_parts(self.attack, "Targeted")
        if not self.attack.targetable:
            raise ValueError(f"{type(self.attack).__name__} has no targeted variant: give Targeted another attack")
        require_choice("choose", self.choose, Choice)
        for name in ("eps", "norm"):
            object.__setattr__(self, name, getattr(self.attack, name))
        super().__post_init__()

    @property
    def needs(self) -> Needs:
        """What the inner attack needs; at least scores, to choose the target by."""
        return "scores" if self.attack.needs == "nothing" else self.attack.needs

    def with_eps(self, eps: float) -> Self:
        """The same targets for another budget."""
        return replace(self, attack=self.attack.with_eps(eps))

    def cost(self, classes: int) -> Cost:
        """A look at the clean image, and the inner attack."""
        return self.attack.cost(classes).plus(Cost(1, 0))

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """Chooses targets and runs the inner attack towards them."""
        with torch.no_grad():
            logits = surrogate.mean_logits(images, rng.stream("look"))
        targets = self.targets(logits, goal.labels, rng.stream("target"))
        attack = replace(self.attack, box=self.box)
        return attack.search(surrogate, images, Goal(goal.labels, targets), rng, ball)

    def targets(self, logits: Tensor, labels: Tensor, rng: SampleRNG) -> Tensor:
        """A wrong class for each image, int64, shape ``(N,)``, given clean logits ``(N, K)``."""
        if self.choose == "random":
            count = logits.shape[1]
            return (labels + 1 + rng.integers(1, high=count - 1).squeeze(1)) % count
        if self.choose == "least_likely":
            return logits.scatter(1, labels.unsqueeze(1), torch.inf).argmin(dim=1)
        return logits.scatter(1, labels.unsqueeze(1), -torch.inf).argmax(dim=1)
