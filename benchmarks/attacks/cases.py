"""What is compared: each attack with the settings that all libraries get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_advdef.types import Norm

Run = Callable[[Tensor, Tensor], Tensor]
"""Images and labels to adversarial images."""

CW_SEARCH_STEPS = 9
FAB_RADIUS = 100.0  # peers' FAB keeps points of at most this norm: any, where the norm itself is measured


@dataclass(frozen=True)
class Case:
    """An attack and its budget of steps.

    Attributes:
        norms: Norms it is measured in.
        steps: Steps, queries for Square; of each search step for Carlini and Wagner.
        minimal: Judged by the median norm instead of robust accuracy.
        random: Whether seeds matter.
        priced: Whether all images that are not broken cost the same, so that needed passes can be told. In FAB those
            that cross the boundary beyond the budget cost more.
    """

    norms: Sequence[Norm]
    steps: int
    minimal: bool = False
    random: bool = True
    priced: bool = True


CASES: dict[str, Case] = {
    "FGSM": Case(("linf", "l2"), 1, random=False),
    "BIM": Case(("linf", "l2"), 40, random=False),
    "PGD": Case(("linf", "l2"), 40),
    "MIM": Case(("linf", "l2"), 40, random=False),
    "APGD": Case(("linf", "l2"), 100),
    "APGD-DLR": Case(("linf", "l2"), 100),
    "APGD-T": Case(("linf", "l2"), 100),
    "FAB": Case(("linf", "l2"), 100, random=False, priced=False),
    "FAB-T": Case(("linf", "l2"), 100, random=False, priced=False),
    "Square": Case(("linf", "l2"), 5000),
    "AutoAttack": Case(("linf", "l2"), 100, priced=False),
    "CW-linf": Case(("linf",), 20, random=False),
    "FAB-norm": Case(("linf", "l2"), 100, minimal=True, random=False),
    "DeepFool": Case(("l2",), 50, minimal=True, random=False),
    "DDN": Case(("l2",), 100, minimal=True, random=False),
    "FMN": Case(("linf", "l2"), 100, minimal=True, random=False),
    "CW": Case(("l2",), 200, minimal=True, random=False),
}


@dataclass(frozen=True)
class Setting:
    """What an attack is built from, on either side.

    Attributes:
        attack: Name in ``CASES``.
        norm: Norm of the budget, or the one minimised.
        eps: Budget of the network; ignored by minimal-norm attacks.
        steps: See :class:`Case`.
        classes: Classes of the data.
        shape: Of one image.
        seed: Of the attack.
        device: Where it runs.
    """

    attack: str
    norm: Norm
    eps: float
    steps: int
    classes: int
    shape: tuple[int, int, int]
    seed: int
    device: str

    @property
    def step_size(self) -> float:
        """2.5 eps / steps for PGD, eps / steps for attacks that start at the image."""
        return self.eps * (2.5 if self.attack == "PGD" else 1.0) / self.steps
