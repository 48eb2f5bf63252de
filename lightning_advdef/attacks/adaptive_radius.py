"""What DDN and FMN share: steps in a ball that shrinks where the network is fooled and grows where it is not."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_advdef.attacks.base import MinimalNormAttack
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import LossGradient, last_look, loss_and_gradient
from lightning_advdef.attacks.losses import LOSSES, LossName, margin
from lightning_advdef.attacks.lp_ball import lp_norm, per_image
from lightning_advdef.attacks.smallest import Smallest
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG


def cosine_annealed(first: float, last: float, step: int, steps: int) -> float:
    """From ``first`` at step 0 along half a cosine towards ``last`` at step ``steps``."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


class Look(NamedTuple):
    """What is known of the current iterates.

    Attributes:
        iterates: Shape ``(N, C, H, W)``.
        sizes: Norm of their perturbations, shape ``(N,)``.
        found: Loss, gradient and logits there; the gradient is zero at the last look.
        gap: Margin of the logits, shape ``(N,)``; the loss may hold what an adaptive surrogate adds.
        fooled: Whether they reach the goal, shape ``(N,)``.
    """

    iterates: Tensor
    sizes: Tensor
    found: LossGradient
    gap: Tensor
    fooled: Tensor


@dataclass(frozen=True)
class AdaptiveRadiusAttack(MinimalNormAttack):
    """Gradient ascent on a ball whose radius follows each image's success.

    One gradient per step and a forward pass at the end, which the authors' codes leave out: they never look at where
    their last step leads. An image that an exact surrogate gets wrong from the start is its own answer and costs
    one gradient; elsewhere it is searched like any other, and the image itself is never the answer. One that is never
    fooled comes back unchanged.

    Args:
        steps: Gradient steps.
        gamma: Share by which the radius shrinks or grows in a step (γ).
    """

    leaves: ClassVar[Literal["prediction", "label"]] = "label"
    targetable: ClassVar[bool] = True
    loss: ClassVar[LossName]

    steps: int = 100
    gamma: float = 0.05

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.steps < 1 or not 0 < self.gamma < 1:
            raise ValueError(f"steps must be at least 1 and gamma between 0 and 1, got {self.steps} and {self.gamma}")

    def cost(self, classes: int) -> Cost:
        """A gradient per step and a last look."""
        return Cost(self.steps + 1, self.steps)

    def perturb(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """Looks at all images once and goes on with those that are not wrong already."""
        first = self._look(surrogate, images, images, goal, rng.stream("step", 0))
        done = first.fooled if surrogate.exact else torch.zeros_like(first.fooled)
        if done.all():
            return images
        rows = torch.arange(len(images), device=images.device)
        if surrogate.fixed_shape:
            surrogate.working = ~done
        else:
            rows = rows[~done]
        nearest = self._search(surrogate, images[rows], goal[rows], rng[rows], _select(first, rows))
        surrogate.working = None
        return torch.where(per_image(done), images, images.index_copy(0, rows, nearest))

    def _search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, look: Look) -> Tensor:
        """All steps; no image can leave, because each may still come nearer."""
        best, farthest = Smallest(images), self._farthest(images)
        rows = torch.arange(len(images), device=images.device)
        radius = self._first_radius(farthest)
        for step in range(self.steps):
            radius = self._next_radius(radius, look, best, step).minimum(farthest)
            iterates = self._move(images, look, radius, step)
            last = step + 1 == self.steps
            look = self._look(surrogate, images, iterates, goal, rng.stream("step", step + 1), last)
            best.update(rows, look.iterates, look.sizes, look.fooled)
        return best.images

    def _look(
        self,
        surrogate: Surrogate,
        images: Tensor,
        iterates: Tensor,
        goal: Goal,
        rng: SampleRNG,
        last: bool = False,
    ) -> Look:
        ask = last_look if last else loss_and_gradient
        found = ask(surrogate, iterates, goal, LOSSES[self.loss], rng)
        sizes = lp_norm(iterates - images, self.size_norm)
        gap = margin(found.logits, goal)
        return Look(iterates, sizes, found, gap, surrogate.fooled(iterates, found.logits, goal, rng))

    def _farthest(self, images: Tensor) -> Tensor:
        """Norm of the largest perturbation inside the pixel box, shape ``(N,)``."""
        if not self.box:
            return images.new_full((len(images),), float("inf"))
        return lp_norm(torch.maximum(images, 1 - images), self.size_norm)

    @abstractmethod
    def _first_radius(self, farthest: Tensor) -> Tensor:
        """Radius of each image's ball before the first step, shape ``(N,)``, given the largest that makes sense."""

    @abstractmethod
    def _next_radius(self, radius: Tensor, look: Look, best: Smallest, step: int) -> Tensor:
        """Radius of each image's ball for this step, shape ``(N,)``."""

    @abstractmethod
    def _move(self, images: Tensor, look: Look, radius: Tensor, step: int) -> Tensor:
        """The next iterates, inside the ball and the pixel box, shape ``(N, C, H, W)``."""


def _select(look: Look, rows: Tensor) -> Look:
    found = LossGradient(*(values[rows] for values in look.found))
    return Look(look.iterates[rows], look.sizes[rows], found, look.gap[rows], look.fooled[rows])
