"""Adversarial training images of IDFR: of one attack, of one drawn for every batch, or of a folder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_advdef.attacks import Attack, FixedBudgetAttack, Surrogate
from lightning_advdef.defenses.fixed_examples import FixedExamples, Leaves, attacked
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch


class Adversaries:
    """Attacks on a fixed network.

    Args:
        surrogate: What is attacked.
        attacks: One for matched training; several are drawn from, with equal chance, once for every batch.
        largest_eps: If given, the budget of a batch is drawn from 0 to it.
        leaves: Whether images are driven away from the label or from the prediction of what is attacked.
        sets: Images made before, one set for each attack; None to attack every batch anew.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        attacks: Sequence[Attack],
        largest_eps: float | None = None,
        leaves: Leaves = "label",
        sets: Sequence[FixedExamples] | None = None,
    ) -> None:
        self.surrogate, self.attacks = surrogate, list(attacks)
        self.largest_eps, self.leaves, self.sets = largest_eps, leaves, sets

    def draw(self, batch: Batch, rng: SampleRNG, common: SampleRNG) -> Tensor:
        """Adversarial images of one attack for all, drawn with equal chance.

        Args:
            batch: Clean images ``(N, C, H, W)``.
            rng: Of the images.
            common: Of one row, the same for all parts of a batch: draws attack and budget.

        Returns:
            Shape ``(N, C, H, W)``.
        """
        number = int(common.stream("choice").integers(1, high=len(self.attacks)))
        return self.of(number, batch, rng, common)

    def of(self, number: int, batch: Batch, rng: SampleRNG, common: SampleRNG) -> Tensor:
        """Adversarial images ``(N, C, H, W)`` of one of the attacks; see :meth:`draw`."""
        if self.sets is not None:
            return self.sets[number][batch.indices]
        attack = self.attacks[number]
        if self.largest_eps is not None:
            share = float(common.stream("eps").uniform(1))
            attack = attack.with_eps(share * self.largest_eps)
        return attacked(self.surrogate, attack, batch, rng, self.leaves)


def require_budgets(attacks: Sequence[Attack], largest_eps: float | None) -> None:
    """Refuses to draw budgets for attacks that have none.

    Raises:
        ValueError: If there is no attack, or one without a budget although budgets are drawn.
    """
    if not attacks:
        raise ValueError("IDFR needs at least one attack to train on: change --model.attacks")
    without = [type(attack).__name__ for attack in attacks if not isinstance(attack, FixedBudgetAttack)]
    if largest_eps is not None and (without or largest_eps <= 0):
        raise ValueError(
            "largest_eps must be above 0 and needs attacks with a budget, got "
            f"{largest_eps} and {', '.join(without) or 'such attacks'}: change --model.largest_eps or --model.attacks"
        )
