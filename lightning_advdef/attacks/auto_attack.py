"""AutoAttack: the reference cascade, without a parameter to tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal

from torch import Tensor

from lightning_advdef.attacks.apgd import APGD, TargetedAPGD
from lightning_advdef.attacks.base import Attack
from lightning_advdef.attacks.cascade import AttackInParts
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.fab import FAB, TargetedFAB
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.lp_ball import LpBall
from lightning_advdef.attacks.square import Square
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.attacks.surrogates.eot import EOT
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm

Version = Literal["standard", "plus", "rand"]


@dataclass(frozen=True)
class AutoAttack(AttackInParts):
    """AutoAttack with the settings of the reference.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, and their code, commit a392200.

    Departures from the code: images leave a part as soon as they are broken; random numbers belong to an image
    (Square's windows, too, which the reference shares in a batch, and which may here touch the last row and column);
    FAB's restarts begin within half of the smallest norm found; targets are at most the number of other classes, and
    DLR has a form for two and three classes; several draws of a random defense enter losses and decisions as their
    mean, where the reference takes the last; its survivors are decided by ten draws instead of one.

    Args:
        version: ``standard``: APGD-CE, targeted APGD-DLR, targeted FAB, Square. ``plus``: five restarts of APGD-CE,
            APGD-DLR and FAB, then Square and the targeted ones. ``rand``, for random defenses: APGD-CE and APGD-DLR on
            the mean of 20 draws (unless the surrogate has several already).
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    eot_samples: ClassVar[int] = 20

    version: Version = "standard"

    def parts(self) -> Mapping[str, Attack]:
        """The attacks of this version, in the reference's order."""
        eps, norm = self.eps, self.norm
        restarts = 5 if self.version == "plus" else 1
        untargeted: dict[str, Attack] = {
            "apgd_ce": APGD(eps, norm, restarts=restarts),
            "apgd_dlr": APGD(eps, norm, loss="dlr", restarts=restarts),
        }
        if self.version == "rand":
            return untargeted
        square: dict[str, Attack] = {"square": Square(eps, norm)}
        apgd_t: dict[str, Attack] = {"apgd_t": TargetedAPGD(eps, norm)}
        fab_t: dict[str, Attack] = {"fab_t": TargetedFAB(norm, enough=eps)}
        if self.version == "plus":
            return untargeted | {"fab": FAB(norm, restarts=restarts, enough=eps)} | square | apgd_t | fab_t
        return {"apgd_ce": untargeted["apgd_ce"]} | apgd_t | fab_t | square

    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """The cascade; ``rand`` first averages over draws."""
        if self.version != "rand" or surrogate.draws > 1:
            return super().search(surrogate, images, goal, rng, ball)
        averaged = EOT.over(surrogate, self.eot_samples)
        adversarial = super().search(averaged, images, goal, rng, ball)
        surrogate.ledger = averaged.ledger
        return adversarial

    @property
    def own_draws(self) -> int:
        """Those of ``rand``."""
        return self.eot_samples if self.version == "rand" else 1

    def cost(self, classes: int) -> Cost:
        """All parts; those of ``rand`` with its draws, which verdicts do without."""
        if self.version != "rand":
            return super().cost(classes)
        verdicts = Cost(2 + len(self.parts()), 0)
        draws = [part.cost(classes).times(self.eot_samples) for part in self.parts().values()]
        return reduce(Cost.plus, draws, verdicts)
