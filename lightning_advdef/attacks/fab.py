"""FAB: the smallest perturbation, by walking along the boundary while being drawn to the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_advdef.attacks.base import MinimalNormAttack, require_positive
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.fab_walk import FABWalk, fab_step
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import TracedLogits
from lightning_advdef.attacks.lp_ball import lp_norm, per_image
from lightning_advdef.attacks.smallest import Smallest
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Eps, Norm

_FARTHEST_START = {"linf": 0.3, "l2": 1.0}  # the authors' radii, where neither a budget nor a smaller norm is known
_TINY = 1e-12


@dataclass(frozen=True)
class FAB(MinimalNormAttack):
    """Fast adaptive boundary attack: minimal perturbations, towards the nearest of all linearised boundaries.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/1907.02044, algorithm 1, with the constants of the authors' code
    and, like it, without a final search on the line. A step costs K - 1 backward passes and one forward pass, and a
    second one mostly where it crossed the boundary. Images that an exact surrogate gets wrong already, or that are
    never fooled, come back as they are; one that another surrogate gets wrong is attacked like any other.

    Args:
        norm: What is minimised, ``linf`` or ``l2``.
        steps: Steps of each restart.
        restarts: The first starts at the image, others at random within half of the smallest norm known, of
            ``enough``, or of the authors' 0.3 (linf) and 1 (l2).
        alpha_max: Largest bias towards the image.
        eta: How far to step beyond the linearised boundary, 1 for onto it.
        beta: Which share of the way from the image a step back keeps after the boundary was crossed.
        enough: An image is done as soon as a norm of at most this is found, where the surrogate is exact: what a test
            at one budget needs. None searches on for the smallest.

    Raises:
        ValueError: If a setting is out of its range.
    """

    leaves: ClassVar[Literal["prediction", "label"]] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    norm: Norm = "linf"
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    enough: Eps | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.norm not in self.norms:
            raise ValueError(f"{type(self).__name__} knows the norms {', '.join(self.norms)}, got {self.norm!r}")
        require_positive(steps=self.steps, restarts=self.restarts)
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            raise ValueError(
                f"FAB needs alpha_max in 0..1, eta of at least 1 and beta between 0 and 1, "
                f"got {self.alpha_max}, {self.eta} and {self.beta}"
            )
        if self.enough is not None:
            object.__setattr__(self, "enough", Eps(self.enough))
            if not 0 <= self.enough < math.inf:
                raise ValueError(f"enough must be a finite number of at least 0, got {float(self.enough)}")

    @property
    def size_norm(self) -> Norm:
        """The norm that is minimised."""
        return self.norm

    def with_eps(self, eps: float) -> Self:
        """The same attack, content with perturbations of at most ``eps``."""
        return replace(self, enough=Eps(eps))

    def cost(self, classes: int) -> Cost:
        """The clean image; in each restart the start and all steps, the last of them without gradients."""
        walk = Cost(self.steps + 1, self.steps * (classes - 1))
        return Cost(1, 0).plus(walk.times(self.restarts))

    def perturb(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """Walks from every image towards all its goals; in float32 also where others search in bfloat16.

        A walk measures how far a boundary is by the gap between two logits, which near the boundary is lost in
        bfloat16's rounding: the median norms on an adversarially trained MNIST network were 14% (linf) and 49% (l2)
        larger.
        """
        with surrogate.in_float32():
            return self._walk_all(surrogate, images, goal, rng)

    def _walk_all(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        with torch.no_grad():
            logits = surrogate.mean_logits(images, rng.stream("rank"))
        reached = surrogate.final(images, logits, goal, rng.stream("rank"))
        enough = self.enough if self.enough is not None and surrogate.exact else -1.0
        best = Smallest(images, enough)
        best.done |= reached
        best.sizes.masked_fill_(reached, 0.0)
        everyone = torch.arange(len(images), device=images.device)
        for chunk in surrogate.chunks(len(images), surrogate.draws * self._gradients(logits.shape[1])):
            for name, aim in self._goals(goal, logits):
                for restart in range(self.restarts):
                    rows = everyone[chunk] if surrogate.fixed_shape else everyone[chunk][~best.done[chunk]]
                    if best.done[rows].all():
                        break
                    stream = rng.stream("goal", name).stream("restart", restart)
                    start = self._start(images[rows], stream[rows], best.sizes[rows], restart)
                    walk = FABWalk(surrogate, images, aim, stream, best, rows, start, self.norm, self.beta)
                    walk.run(self.steps, self._step, self._boundary)
        return best.images

    def _gradients(self, classes: int) -> int:
        """Backward passes per step."""
        return classes - 1

    def _goals(self, goal: Goal, logits: Tensor) -> Iterator[tuple[int, Goal]]:
        """What to walk towards, one after the other, each with a number of its own; logits of the clean images."""
        yield 0, goal

    def _start(self, images: Tensor, rng: SampleRNG, sizes: Tensor, restart: int) -> Tensor:
        """A random point within half of the smallest norm known; departs from the authors' code, which knows eps alone.

        Source: Croce and Hein, 2020, section 2.3.
        """
        if restart == 0:
            return images
        draw = rng.stream("start")
        direction = (
            draw.uniform(*images.shape[1:], low=-1, high=1) if self.norm == "linf" else draw.normal(*images.shape[1:])
        )
        radius = sizes.clamp_max(_FARTHEST_START[self.norm] if self.enough is None else self.enough) / 2
        return self.clip(images + direction * per_image(radius / lp_norm(direction, self.norm).clamp_min(_TINY)))

    def _step(self, images: Tensor, points: Tensor, gaps: Tensor, normals: Tensor) -> Tensor:
        return fab_step(images, points, gaps, normals, self.norm, self.alpha_max, self.eta, self.box)

    def _boundary(self, trace: TracedLogits, goal: Goal, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Logit gap and its gradient for the wrong class whose linearised boundary is nearest."""
        logits, labels = trace.logits, goal.labels.unsqueeze(1)
        others = torch.arange(logits.shape[1] - 1, device=logits.device)
        others = others + (others >= labels)
        gaps = logits.gather(1, others) - logits.gather(1, labels)
        one_hot = F.one_hot(torch.cat([labels, others], dim=1), logits.shape[1]).to(logits.dtype)
        normals = trace.gradients((one_hot[:, 1:] - one_hot[:, :1]).transpose(0, 1), wanted)
        slopes = torch.linalg.vector_norm(normals.flatten(2), ord=1 if self.norm == "linf" else 2, dim=2)
        nearest = (gaps.abs() / (slopes + _TINY)).argmin(dim=1)
        image = torch.arange(len(logits), device=logits.device)
        return gaps[image, nearest], normals[image, nearest]


@dataclass(frozen=True)
class TargetedFAB(FAB):
    """FAB towards one class after the other, by falling logit of the clean image: one backward pass per step.

    Source: the FAB-T of AutoAttack, Croce and Hein, 2020, https://arxiv.org/abs/2003.01690. Every wrong class counts as
    found. With ``target_labels`` it walks to these alone, along the boundary with the highest other class.

    Args:
        targets: Classes tried, from the second highest logit on; all if there are fewer.
    """

    targetable: ClassVar[bool] = True

    targets: int = 9

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        require_positive(targets=self.targets)

    def cost(self, classes: int) -> Cost:
        """The clean image; for each target and restart the start and all steps, the last without gradients."""
        walks = min(self.targets, classes - 1) * self.restarts
        return Cost(1, 0).plus(Cost(self.steps + 1, self.steps).times(walks))

    def _gradients(self, classes: int) -> int:
        """One per step."""
        return 1

    def _goals(self, goal: Goal, logits: Tensor) -> Iterator[tuple[int, Goal]]:
        """The classes of highest logit after the true one, each an image's own."""
        if goal.targets is not None:
            yield 0, goal
            return
        wrong = logits.scatter(1, goal.labels.unsqueeze(1), float("-inf"))
        ranked = wrong.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices
        for rank, targets in enumerate(ranked.T):
            yield rank, goal.towards(targets)

    def _boundary(self, trace: TracedLogits, goal: Goal, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Gap between the logits of target and true class and its gradient."""
        assert goal.targets is not None
        logits = trace.logits
        others = goal.labels
        if not goal.any_wrong:
            others = logits.scatter(1, goal.targets.unsqueeze(1), float("-inf")).argmax(dim=1)
        ends = torch.stack([goal.targets, others])
        gaps = logits.gather(1, ends.T)
        one_hot = F.one_hot(ends, logits.shape[1]).to(logits.dtype)
        return gaps[:, 0] - gaps[:, 1], trace.gradients(one_hot[:1] - one_hot[1:], wanted)[:, 0]
