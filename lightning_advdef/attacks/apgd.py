"""APGD and targeted APGD: projected gradient ascent that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_advdef.attacks.base import Attack, FixedBudgetAttack, refuse_parts, require_positive
from lightning_advdef.attacks.best import BestIterates, steps_between_syncs
from lightning_advdef.attacks.climb import Climb, checkpoint_gaps
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import last_look, loss_and_gradient, reference_cost, with_reference
from lightning_advdef.attacks.losses import LOSSES, LossName
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm, per_image
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm

_MOMENTUM = 0.75  # alpha of Eq. 3; the first step has none
_TINY = 1e-12  # the authors' constant below the norm of the start noise


@dataclass(frozen=True)
class APGD(FixedBudgetAttack):
    """Auto-PGD: gradient ascent with momentum that halves its step size when the loss stops rising.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, algorithm 1, with the conventions of the authors'
    code where the paper is silent. Costs ``steps`` gradients and one forward pass per image and restart; images that
    are fooled leave where that cannot change the verdict.

    Note:
        Departures from the authors' code: the point after the last step is only classified, its gradient being of no
        use; a fooled image leaves with the first point that fools the network, where the authors go on and return the
        last; where nothing fools it, the point of highest loss is returned instead of the image; images that are
        misclassified from the start are attacked like others; a surrogate with several draws is judged by their mean,
        not by the last of them; and gradients too small to be squared still give an l2 step of full length.

    Args:
        steps: Gradient steps of each restart.
        loss: What is maximised.
        restarts: Runs from new starts, on the images not fooled so far.
        rho: Share of the steps between two checkpoints at which the loss has to rise, or the step size is halved.
        start: Attack whose result is where the search begins, projected onto the ball, in place of a random start.
    """

    targetable: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    steps: int = 100
    loss: LossName = "cross_entropy"
    restarts: int = 1
    rho: float = 0.75
    start: Attack | None = None

    def __post_init__(self) -> None:
        """Checks steps, restarts, rho and start."""
        super().__post_init__()
        refuse_parts(self.start, f"start of {type(self).__name__}")
        require_positive(steps=self.steps, restarts=self.restarts)
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho is a share of the steps and must lie in 0..1, got {self.rho}")

    def cost(self, classes: int) -> Cost:
        """A gradient per step and a last look, for each restart; and what the start costs."""
        own = Cost(self.steps + 1, self.steps)
        each = own if self.start is None else own.plus(self.start.cost(classes))
        return each.times(self.restarts).plus(reference_cost(self.loss))

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """Runs all restarts; an image decided by an earlier one is left alone."""
        goal = with_reference(surrogate, images, goal, self.loss, rng)
        best = BestIterates(images)
        self._restart(surrogate, images, goal, rng, ball, best)
        return best.images

    def _restart(
        self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall, best: BestIterates
    ) -> None:
        """All restarts towards one goal; what they find goes to ``best``."""
        for restart in range(self.restarts):
            if best.decided.all():
                return
            rows = best.open_rows(surrogate.may_compact)
            stream = rng[rows].stream("restart", restart)
            climb = Climb.of(rows, images[rows], goal[rows], stream, ball[rows], self.box)
            climb.decided = best.decided[rows]
            with surrogate.enlisting(~best.decided):
                climb.iterates = climb.previous = self._start(surrogate, climb)
            self._run(surrogate, climb, best)
            surrogate.working = None

    def _start(self, surrogate: Surrogate, climb: Climb) -> Tensor:
        """The other attack's result, or noise that touches the sphere (for linf, in one pixel at least)."""
        stream = climb.rng.stream("start")
        if self.start is not None:
            return climb.inside(self.start.perturb(surrogate, climb.images, climb.goal, stream))
        shape = climb.images.shape[1:]
        noise = stream.uniform(*shape, low=-1.0, high=1.0) if self.norm == "linf" else stream.normal(*shape)
        noise = noise / (per_image(lp_norm(noise, self.norm)) + _TINY)
        return self.clip(climb.images + climb.ball.radius * noise)

    def _run(self, surrogate: Surrogate, climb: Climb, best: BestIterates) -> None:
        """One run to its end, or until every image is decided."""
        gaps = checkpoint_gaps(self.steps)
        every = steps_between_syncs(climb.images)
        for step in range(self.steps + 1):
            surrogate.leave_out(climb.decided)
            self._look(surrogate, climb, step)
            if surrogate.exact and step % every == 0 and self._all_left(climb, surrogate.may_compact, best):
                break
            if step in gaps:
                climb.look_back(gaps[step], self.rho)
            if step < self.steps:
                climb.move(_MOMENTUM if step else 1.0)
        best.update(climb.rows, climb.best, climb.best_loss, climb.decided)

    def _look(self, surrogate: Surrogate, climb: Climb, step: int) -> None:
        """Asks the surrogate about the iterates, for the last time without a gradient."""
        stream, look = climb.rng.stream("step", step), loss_and_gradient if step < self.steps else last_look
        found = look(surrogate, climb.iterates, climb.goal, LOSSES[self.loss], stream)
        climb.record(found, surrogate.final(climb.iterates, found.logits, climb.goal, stream))
        if step:
            climb.compare(found.loss)

    def _all_left(self, climb: Climb, compact: bool, best: BestIterates) -> bool:
        """Whether no image needs more work; decided ones leave the batch if they may."""
        kept = (~climb.decided).nonzero().squeeze(1)
        if compact and 0 < len(kept) < len(climb.rows):
            left = climb.decided.nonzero().squeeze(1)
            best.update(climb.rows[left], climb.best[left], climb.best_loss[left], climb.decided[left])
            climb.keep(kept)
        return not len(kept)


@dataclass(frozen=True)
class TargetedAPGD(APGD):
    """APGD towards each of the most likely wrong classes in turn; every wrong class counts as success.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, section 4.2, Eq. 7 (APGD-T). The classes are those
    the clean image ranks highest, the true one left out. Images fooled on the way to one are not sent to the next.

    Note:
        The classes are ranked once, where the authors' code ranks them again for each target; an image that this pass
        finds misclassified is returned as it is, as by the authors. With fewer than four classes, see
        :func:`lightning_advdef.attacks.losses.dlr`.

    Args:
        loss: What is maximised.
        targets: Wrong classes to try, at most all.
    """

    targetable: ClassVar[bool] = False

    loss: LossName = "dlr"
    targets: int = 9

    def __post_init__(self) -> None:
        """Checks the number of targets, too."""
        super().__post_init__()
        require_positive(targets=self.targets)

    def cost(self, classes: int) -> Cost:
        """A pass that ranks the classes, then APGD for each target."""
        return Cost(1, 0).plus(super().cost(classes).times(min(self.targets, classes - 1)))

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """Ranks the classes, then runs towards one after the other."""
        best, stream = BestIterates(images), rng.stream("rank")
        with torch.no_grad():
            logits = surrogate.mean_logits(images, stream)
        best.decided |= surrogate.final(images, logits, goal, stream)
        wrong = logits.scatter(1, goal.labels.unsqueeze(1), float("-inf"))
        targets = wrong.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices
        for rank in range(targets.shape[1]):
            self._restart(surrogate, images, goal.towards(targets[:, rank]), rng.stream("target", rank), ball, best)
        return best.images
