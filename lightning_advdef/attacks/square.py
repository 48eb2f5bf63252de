"""Square: random search that sees nothing but scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_advdef.attacks.base import FixedBudgetAttack, Needs, require_positive
from lightning_advdef.attacks.best import BestIterates
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import mean_loss
from lightning_advdef.attacks.losses import LOSSES
from lightning_advdef.attacks.lp_ball import LpBall, per_image
from lightning_advdef.attacks.square_windows import L2Proposals, LinfProposals, Proposals
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.errors import require_choice
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm

_QUERIES_BETWEEN_SYNCS = 10  # on a GPU, asking whether an image may leave costs more than a few rows
_PROPOSALS: dict[Norm, type[Proposals]] = {"linf": LinfProposals, "l2": L2Proposals}

SquareLoss = Literal["margin", "cross_entropy"]


@dataclass(frozen=True)
class Square(FixedBudgetAttack):
    """Square attack: windows at random places, kept where they raise the loss.

    Source: Andriushchenko et al., 2020, https://arxiv.org/abs/1912.00049, algorithms 1 to 3. The schedule of window
    sizes is that for 10000 queries and is not rescaled, as in AutoAttack (https://arxiv.org/abs/2003.01690).
    At most ``queries + 1`` forward passes per image and restart.

    Each image has windows and signs of its own, where the authors' code shares them in a batch; per image it is what
    their code does with a batch of one. A rectangular image has windows of its own shape.

    Args:
        queries: Proposals of each restart, after the start.
        p_init: Share of an image's pixels that the first windows cover.
        restarts: Runs from new starts, on the images not fooled so far.
        loss: What has to grow; with targets it is the cross-entropy, as in the paper.
    """

    targetable: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    loss: SquareLoss = "margin"

    def __post_init__(self) -> None:
        """Checks queries, restarts, p_init and the loss."""
        super().__post_init__()
        require_positive(queries=self.queries, restarts=self.restarts)
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init is a share of the pixels, above 0 and at most 1, got {self.p_init}")
        require_choice("loss", self.loss, SquareLoss)

    @property
    def needs(self) -> Needs:
        """Scores alone."""
        return "scores"

    def cost(self, classes: int) -> Cost:
        """The start and every query, for each restart; a query that would change nothing is spared."""
        return Cost(self.queries + 1, 0).times(self.restarts)

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """Runs all restarts; an image decided by an earlier one is left alone."""
        best = BestIterates(images)
        for restart in range(self.restarts):
            rows = best.open_rows(surrogate.may_compact)
            if not len(rows):
                break
            stream = rng.stream("restart", restart)[rows]
            proposals = _PROPOSALS[self.norm](images[rows], ball[rows], stream, self.p_init, self.clip)
            with torch.no_grad():
                _Walk(self, surrogate, goal, rows, proposals, best).run()
            surrogate.working = None
        return best.images


class _Walk:
    """One restart: the images still in it, the best iterate of each and its loss."""

    def __init__(
        self,
        attack: Square,
        surrogate: Surrogate,
        goal: Goal,
        rows: Tensor,
        proposals: Proposals,
        best: BestIterates,
    ) -> None:
        self.surrogate, self.proposals, self.best = surrogate, proposals, best
        self.queries = attack.queries
        self.loss_of = LOSSES["cross_entropy" if goal.targets is not None else attack.loss]
        self.rows, self.goal = rows, goal[rows]
        self.decided = best.decided[rows]
        self.found = proposals.images.clone()
        self.loss = torch.full_like(proposals.eps, float("-inf"))

    def run(self) -> None:
        """Asks about the start and every proposal, and hands over what was found."""
        every = 1 if self.found.device.type == "cpu" else _QUERIES_BETWEEN_SYNCS
        self._ask(self.proposals.start(), -1)
        for query in range(self.queries):
            if self.surrogate.exact and query % every == 0 and self._all_decided():
                break
            self._ask(self.proposals.propose(self.found, query), query)
        self._hand_over(torch.arange(len(self.rows), device=self.rows.device))

    def _ask(self, images: Tensor, query: int) -> None:
        """Keeps images that raise the loss, or that fool an exact surrogate and so end the search."""
        loss, final = self._answers(images, query)
        better = ((loss > self.loss) | final) & ~self.decided
        self.decided = self.decided | final
        # exact at weights 0 and 1, and on CPU four times as fast as torch.where with a condition per image
        self.found.lerp_(images, per_image(better).to(images.dtype))
        self.loss = torch.where(better, loss, self.loss)

    def _answers(self, images: Tensor, query: int) -> tuple[Tensor, Tensor]:
        """Loss of the proposals and whether they are final.

        All queries of a restart have the same random numbers, so that a proposal and what it would replace are compared
        under the same draws, not with the luckiest ones so far. An exact surrogate needs none, and is not asked about
        proposals that change nothing, a fifth of them on MNIST, where most pixels are at a bound.
        """
        surrogate, rng = self.surrogate, self.proposals.rng
        if not surrogate.exact:
            loss, logits = mean_loss(surrogate, images, self.goal, self.loss_of, rng)
            return loss, surrogate.final(images, logits, self.goal, rng)
        asked = torch.ones_like(self.decided) if query < 0 else (images != self.found).flatten(1).any(dim=1)
        if surrogate.fixed_shape:
            surrogate.working = asked & ~self.decided
            loss, logits = mean_loss(surrogate, images, self.goal, self.loss_of, rng)
            return loss, surrogate.final(images, logits, self.goal, rng)
        rows = asked.nonzero().squeeze(1)
        loss, final = self.loss.clone(), torch.zeros_like(self.decided)
        if len(rows):
            goal, rng = self.goal[rows], rng[rows]
            loss[rows], logits = mean_loss(surrogate, images[rows], goal, self.loss_of, rng)
            final[rows] = surrogate.final(images[rows], logits, goal, rng)
        return loss, final

    def _all_decided(self) -> bool:
        """Whether nothing is left to do; images that are decided leave a batch that may shrink."""
        if not self.decided.any():
            return False
        if self.surrogate.may_compact:
            self._hand_over(self.decided.nonzero().squeeze(1))
            open_ones = (~self.decided).nonzero().squeeze(1)
            self.proposals.keep(open_ones)
            self.rows, self.goal = self.rows[open_ones], self.goal[open_ones]
            self.found, self.loss, self.decided = self.found[open_ones], self.loss[open_ones], self.decided[open_ones]
            return len(self.rows) == 0
        return bool(self.decided.all())

    def _hand_over(self, places: Tensor) -> None:
        self.best.update(self.rows[places], self.found[places], self.loss[places], self.decided[places])
