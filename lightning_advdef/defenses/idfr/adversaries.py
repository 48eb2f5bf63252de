"""Adversarial training images of IDFR: of one attack, of one drawn for every batch, or of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytorch_lightning import Trainer
from torch import Tensor, nn

from lightning_advdef.attacks import Attack, FixedBudgetAttack, Surrogate, SurrogateFactory
from lightning_advdef.attacks.base import refuse_parts
from lightning_advdef.defenses.base import global_seed
from lightning_advdef.defenses.fixed_examples import FixedExamples, Leaves, attacked, load_or_make
from lightning_advdef.errors import require_choice
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch


@dataclass(frozen=True)
class Recipe:
    """What adversarial training images are made with.

    Args:
        attacks: One for matched training; several are drawn from, with equal chance, once for every batch.
        largest_eps: If given, the budget of a batch is drawn from 0 to it.
        leaves: Whether images are driven away from the label or from the prediction of what is attacked.
        source: What is attacked, given the target.
        cache: Folder of whole sets that are made once; None to attack every batch anew.

    Raises:
        ValueError: If there is no attack, one is made of parts, or budgets are to be drawn for attacks that have none
            or for a cache.
    """

    attacks: Sequence[Attack]
    largest_eps: float | None
    leaves: Leaves
    source: SurrogateFactory
    cache: str | None

    def __post_init__(self) -> None:
        """Refuses what cannot be made."""
        require_choice("leaves", self.leaves, Leaves)
        if not self.attacks:
            raise ValueError("IDFR needs at least one attack to train on: change --model.attacks")
        for attack in self.attacks:
            refuse_parts(attack, "IDFR")
        if self.largest_eps is not None:
            self._require_budgets(self.largest_eps)

    def _require_budgets(self, largest: float) -> None:
        without = [type(attack).__name__ for attack in self.attacks if not isinstance(attack, FixedBudgetAttack)]
        if without or largest <= 0:
            raise ValueError(
                "largest_eps must be above 0 and needs attacks with a budget, got "
                f"{largest} and {', '.join(without) or 'such attacks'}: change --model.largest_eps or --model.attacks"
            )
        if self.cache is not None:
            raise ValueError("cache keeps images of fixed budgets: list attacks with their eps, without largest_eps")

    def on(self, target: nn.Module, trainer: Trainer) -> Adversaries:
        """The attacks on a target; with a cache, their images are made or read now."""
        surrogate = self.source(target)
        if self.cache is None:
            return Adversaries(self, surrogate)
        rest = (global_seed(), self.leaves, self.cache)
        return Adversaries(self, surrogate, [load_or_make(trainer, surrogate, each, *rest) for each in self.attacks])


class Adversaries:
    """Attacks on a fixed network.

    Args:
        recipe: Which ones.
        surrogate: What is attacked.
        sets: Images made before, one set for each attack; None to attack every batch anew.
    """

    def __init__(self, recipe: Recipe, surrogate: Surrogate, sets: Sequence[FixedExamples] | None = None) -> None:
        self.recipe, self.surrogate, self.sets = recipe, surrogate, sets

    def draw(self, batch: Batch, rng: SampleRNG, common: SampleRNG) -> Tensor:
        """Adversarial images of one attack for all, drawn with equal chance.

        Args:
            batch: Clean images ``(N, C, H, W)``.
            rng: Of the images.
            common: Of one row, the same for all parts of a batch: draws attack and budget.

        Returns:
            Shape ``(N, C, H, W)``.
        """
        number = int(common.stream("choice").integers(1, high=len(self.recipe.attacks)))
        return self.of(number, batch, rng, common)

    def of(self, number: int, batch: Batch, rng: SampleRNG, common: SampleRNG) -> Tensor:
        """Adversarial images ``(N, C, H, W)`` of one of the attacks; see :meth:`draw`."""
        if self.sets is not None:
            return self.sets[number][batch.indices]
        attack = self.recipe.attacks[number]
        if self.recipe.largest_eps is not None:
            share = float(common.stream("eps").uniform(1))
            attack = attack.with_eps(share * self.recipe.largest_eps)
        return attacked(self.surrogate, attack, batch, rng, self.recipe.leaves)
