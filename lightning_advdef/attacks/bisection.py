"""A minimal-norm attack made of a fixed-budget one: bisection over eps, image by image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_advdef.attacks.base import Attack, FixedBudgetAttack, MinimalNormAttack, Needs, refuse_parts
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm, per_image
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm


def _innermost(attack: Attack) -> Attack:
    """What wrappers such as Targeted run in the end."""
    inner: Attack | None = getattr(attack, "attack", None)
    return attack if inner is None else _innermost(inner)


@dataclass(frozen=True)
class Bisection(MinimalNormAttack):
    """Smallest budget at which a fixed-budget attack succeeds on each image.

    An upper bound on the distance to the decision boundary that does not rest on DeepFool's linearisation. Costs
    a look at the image and ``rounds + 1`` runs of the inner attack; one run where the largest budget is resisted, none
    where an exact surrogate gets the image wrong already.

    Args:
        attack: Inner attack; its eps is the largest budget tried.
        rounds: Halvings of the interval.
        box: Keep pixels in [0, 1], also in the inner attack.
    """

    leaves: ClassVar[Literal["prediction", "label"]] = "label"

    attack: FixedBudgetAttack
    rounds: int = 8

    def __post_init__(self) -> None:
        """Refuses settings that would keep the inner attack from scaling with its budget."""
        refuse_parts(self.attack, "Bisection")
        if self.rounds < 1 or getattr(_innermost(self.attack), "step_size", None) is not None:
            raise ValueError(
                f"Bisection needs rounds >= 1 and an inner attack with step_size null (it scales with eps), "
                f"got rounds {self.rounds} and {self.attack}"
            )

    @property
    def size_norm(self) -> Norm:
        """The inner attack's norm."""
        return self.attack.norm

    @property
    def needs(self) -> Needs:
        """What the inner attack needs; at least scores, to see whether it succeeded."""
        return "scores" if self.attack.needs == "nothing" else self.attack.needs

    def cost(self, classes: int) -> Cost:
        """An image that resists the largest budget is looked at, tried once and checked."""
        return self.attack.cost(classes).plus(Cost(2, 0))

    def perturb(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """Looks at all images once and goes on with those that are not wrong already."""
        self.attack.check_budget(images)
        stream = rng.stream("clean")
        with torch.no_grad():
            logits = surrogate.mean_logits(images, stream)
        wanted = ~surrogate.final(images, logits, goal, stream)
        rows = torch.arange(len(images), device=images.device)
        if not surrogate.fixed_shape:
            rows = rows[wanted]
        if not len(rows):  # networks may not take a batch of no images
            return images
        with surrogate.enlisting(wanted):
            found = self._bisect(surrogate, images[rows], goal[rows], rng[rows])
        return torch.where(per_image(wanted), images.index_copy(0, rows, found), images)

    def _bisect(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """Narrows the interval of each image; images that resist the largest budget keep its last iterate."""
        largest = images.new_full((len(images),), float(self.attack.eps))
        adversarial, fooled = self._try(surrogate, images, goal, largest, rng.stream("round", 0))
        rows = torch.arange(len(images), device=images.device)
        if not surrogate.fixed_shape:
            rows = rows[fooled]
        if not len(rows):
            return adversarial
        with surrogate.enlisting(fooled):
            narrowed = self._narrow(surrogate, images[rows], goal[rows], rng[rows], adversarial[rows], largest[rows])
        adversarial[rows] = torch.where(per_image(fooled[rows]), narrowed, adversarial[rows])
        return adversarial

    def _narrow(
        self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, adversarial: Tensor, high: Tensor
    ) -> Tensor:
        """Halves each image's interval below ``high``, at which ``adversarial`` was found."""
        low = torch.zeros_like(high)
        for step in range(1, self.rounds + 1):
            middle = (low + high) / 2
            found, success = self._try(surrogate, images, goal, middle, rng.stream("round", step))
            adversarial = torch.where(per_image(success), found, adversarial)
            high = torch.where(success, torch.minimum(middle, lp_norm(found - images, self.size_norm)), high)
            low = torch.where(success, low, middle)
        return adversarial

    def _try(
        self, surrogate: Surrogate, images: Tensor, goal: Goal, eps: Tensor, rng: SampleRNG
    ) -> tuple[Tensor, Tensor]:
        """The inner attack's images at one budget per image, and whether they are misclassified."""
        ball = LpBall(self.attack.norm, eps)
        attack = replace(self.attack, box=self.box)
        adversarial = attack.clip(attack.search(surrogate, images, goal, rng, ball))
        with torch.no_grad():
            logits = surrogate.mean_logits(adversarial, rng.stream("check"))
        return adversarial, surrogate.fooled(adversarial, logits, goal, rng)
