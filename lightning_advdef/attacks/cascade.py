"""Attacks one after the other, each on the images that the deployed defense still gets right."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.base import Attack, FixedBudgetAttack, within_budget
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm, per_image
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.attacks.verdict import deployed_logits, rejections
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Eps, Norm

ROBUST, WRONG_BEFORE = -1, -2  # in the ledger's column broken_by; other values count the parts from 0


@dataclass(frozen=True)
class AttackInParts(FixedBudgetAttack):
    """An attack made of others, with a ledger of which part broke an image.

    Survivors are decided by the deployed defense, never by the surrogate: one pass, or ``draws`` passes where the
    defense is random; then the image that is right on the fewest draws is kept, and an image leaves when none is left.
    Every part starts from the clean image. A part that knows no budget, such as FAB, counts where it stays inside it.
    Of a detector an image is broken where it is wrong and not rejected; one that is rejected goes on to the next part.

    Ledger columns: ``broken_by`` (number of the part, -1 for robust, -2 for wrong without an attack) and, for each
    part, ``<part>/correct`` (share of right draws, NaN for images it was not run on), of a detector
    ``<part>/correct_or_rejected``, ``<part>/forward`` and ``<part>/backward`` (passes). A part whose columns the
    surrogate knows from an earlier call is not run again.

    Args:
        box: Keep pixels in [0, 1], in all parts.
        cascade: Each part gets the survivors of the parts before it; ``False`` runs every part on all images that are
            right without an attack, so that each has an accuracy of its own.
        draws: Passes that decide about an image of a random defense.
    """

    _: KW_ONLY
    cascade: bool = True
    draws: int = 10

    @abstractmethod
    def parts(self) -> Mapping[str, Attack]:
        """The attacks by name, in the order in which they run."""

    def cost(self, classes: int) -> Cost:
        """All parts, two passes on the clean image and one on the result of each part."""
        total = Cost(2, 0)
        for attack in self.parts().values():
            total = total.plus(attack.cost(classes)).plus(Cost(1, 0))
        return total

    def perturb(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """The parts, which a budget of 0 spares, though not the ledger."""
        return self.search(surrogate, images, goal, rng, LpBall(self.norm, images.new_full((len(images),), self.eps)))

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """Runs the parts that are not known yet."""
        surrogate.ledger = dict(surrogate.known)
        if "broken_by" in surrogate.known:
            clean = {"correct": (surrogate.known["broken_by"] != WRONG_BEFORE).to(images.dtype)}
        else:
            clean = self._clean_verdict(surrogate, images, goal, rng)
        right = clean["correct"]
        adversarial, standing = images.clone(), torch.where(right > 0, _standing(clean), 0.0)
        broken_by = torch.where(right > 0, ROBUST, WRONG_BEFORE)
        for number, (name, part) in enumerate(self.parts().items()):
            attack = replace(part, box=self.box)
            if f"{name}/correct" not in surrogate.ledger:
                attacked = ((standing if self.cascade else right) > 0) & (self.eps > 0)
                found = self._run(name, attack, surrogate, images, goal, rng, attacked)
                better = _standing(surrogate.ledger, f"{name}/") < standing
                adversarial = torch.where(per_image(better), found, adversarial)
            after = _standing(surrogate.ledger, f"{name}/")
            broken_by[(after == 0) & (standing > 0)] = number
            standing = torch.fmin(standing, after)
        surrogate.ledger["broken_by"] = broken_by
        return adversarial

    def _run(
        self,
        name: str,
        attack: Attack,
        surrogate: Surrogate,
        images: Tensor,
        goal: Goal,
        rng: SampleRNG,
        attacked: Tensor,
    ) -> Tensor:
        """Adversarial images of one part; their verdicts and passes go to the ledger."""
        before = surrogate.spent(rng)
        found = images.clone()
        columns = ["correct", "correct_or_rejected"] if hasattr(surrogate.defense, "rejects") else ["correct"]
        verdict = {column: images.new_full((len(images),), torch.nan) for column in columns}
        rows = torch.arange(len(images), device=images.device)
        if not surrogate.fixed_shape:
            rows = rows[attacked]
        if attacked.any():
            with surrogate.enlisting(attacked):
                part = rng[rows].stream("part", name)
                result = attack.clip(attack.perturb(surrogate, images[rows], goal[rows], part))
                if not result.isfinite().all():
                    surrogate.refuse_nan()  # which says so where the network is to blame
                attack.verify(result, images[rows])
                inside = within_budget(lp_norm(result - images[rows], self.norm), self.eps, self.norm)
                found[rows] = torch.where(per_image(inside), result.detach(), images[rows])
                judged = self._verdict(surrogate, found[rows], goal[rows], rng[rows].stream("verdict", name))
            for column, share in judged.items():
                verdict[column][rows] = share
                verdict[column][~attacked] = torch.nan
        surrogate.ledger |= {f"{name}/{column}": share for column, share in verdict.items()}
        for kind, now in surrogate.spent(rng).items():
            surrogate.ledger[f"{name}/{kind}"] = now - before[kind]
        return found

    def _clean_verdict(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> dict[str, Tensor]:
        """See ``_verdict``; asks twice, because a network need not say that it is random."""
        if surrogate.random:
            return self._verdict(surrogate, images, goal, rng.stream("clean"))
        first, second = (self._deployed(surrogate, images, rng.stream(name), 1) for name in ("clean", "again"))
        surrogate.random = not torch.equal(first, second)
        if surrogate.random:
            return self._verdict(surrogate, images, goal, rng.stream("draws"))
        return {"correct": _right(goal, first).float().mean(dim=0)}

    def _verdict(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> dict[str, Tensor]:
        """On which share of draws the deployed defense does not do what the attack wants, shape ``(N,)``.

        Of a detector also on which it does not or rejects the image.
        """
        draws = self.draws if surrogate.random else 1
        right = _right(goal, self._deployed(surrogate, images, rng, draws))
        columns = {"correct": right.float().mean(dim=0)}
        assert isinstance(surrogate.defense, nn.Module)
        rejected = rejections(surrogate.defense, images, rng, draws)
        if rejected is not None:
            columns["correct_or_rejected"] = (right | rejected).float().mean(dim=0)
        return columns

    def _deployed(self, surrogate: Surrogate, images: Tensor, rng: SampleRNG, draws: int) -> Tensor:
        """Logits of the deployed defense, shape ``(draws, N, K)``."""
        assert isinstance(surrogate.defense, nn.Module)
        surrogate.count_forward(rng, draws)
        logits = deployed_logits(surrogate.defense, images, rng, draws)
        surrogate.watch_logits(logits)
        return logits


def _right(goal: Goal, logits: Tensor) -> Tensor:
    """Whether draws ``(draws, N, K)`` do not do what the attack wants, bool, shape ``(draws, N)``."""
    return ~torch.stack([goal.reached(draw) for draw in logits])


def _standing(columns: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    """What is left to an attack, 0 where an image is broken on all draws; one wrong but rejected is halfway there."""
    right = columns[f"{prefix}correct"]
    return (right + columns.get(f"{prefix}correct_or_rejected", right)) / 2


@dataclass(frozen=True)
class Cascade(AttackInParts):
    """Any attacks of one budget, one after the other on the survivors.

    Args:
        attacks: By name, in order. All that have a budget must have the same one.

    Raises:
        ValueError: If budgets or norms differ, or there is none.
    """

    eps: Eps = field(init=False, repr=False)
    norm: Norm = field(init=False, repr=False)
    attacks: Mapping[str, Attack] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Takes the budget from the parts."""
        bounded = {name: part for name, part in self.attacks.items() if isinstance(part, FixedBudgetAttack)}
        budgets = {name: (part.norm, float(part.eps)) for name, part in bounded.items()}
        if len(set(budgets.values())) != 1:
            raise ValueError(f"a cascade needs attacks with one budget, got {budgets or 'none that has one'}")
        ((norm, eps),) = set(budgets.values())
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "eps", Eps(eps))
        super().__post_init__()
        for name, part in self.attacks.items():
            if isinstance(part, AttackInParts):
                raise ValueError(f"{name} is made of parts itself: name its parts in this cascade instead")
            if "/" in name or name in ("clean", "broken_by"):
                raise ValueError(f"{name!r} cannot name a part: it is, or would split, the name of a column")

    def __hash__(self) -> int:
        return hash((tuple(self.attacks.items()), self.cascade, self.draws, self.box))

    def with_eps(self, eps: float) -> Self:
        """The same attacks for another budget."""
        return replace(self, attacks={name: attack.with_eps(eps) for name, attack in self.attacks.items()})

    def parts(self) -> Mapping[str, Attack]:
        """The attacks, minimal-norm ones content with the budget."""
        return {name: attack.within(self.norm, self.eps) for name, attack in self.attacks.items()}
