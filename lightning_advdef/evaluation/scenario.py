"""A named row of the evaluation: one attack on one surrogate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_advdef.attacks import Attack, FullGradient, Surrogate, SurrogateFactory
from lightning_advdef.checkpoints import plain


@dataclass(frozen=True)
class Scenario:
    """What is run and what the attacker knows.

    Args:
        name: Name in the report, e.g. ``pgd20_l2``; letters, digits, ``_``, ``-`` and ``.``.
        attack: The attack with its settings.
        surrogate: What the attack differentiates: ``FullGradient`` (white box) unless stated.

    Raises:
        ValueError: If the name cannot be a key of a result file.
    """

    name: str
    attack: Attack
    surrogate: SurrogateFactory = FullGradient

    def __post_init__(self) -> None:
        """Checks the name."""
        if not self.name or not all(sign.isalnum() or sign in "_-." for sign in self.name):
            raise ValueError(f"a scenario's name has letters, digits, '_', '-' and '.' only, got {self.name!r}")
        if self.name == "clean":
            raise ValueError("'clean' names the images without attack: give the scenario another name")

    def describe(self, surrogate: Surrogate) -> dict[str, Any]:
        """Everything needed to run it again, as plain values, given the bound surrogate."""
        return {
            "name": self.name,
            "attack": plain(self.attack),
            "surrogate": type(surrogate).__name__,
            "access": surrogate.access,
        }


def require_unique_names(scenarios: Sequence[Scenario]) -> None:
    """Refuses two rows of one name.

    Raises:
        ValueError: If a name stands twice.
    """
    twice = [name for name, count in Counter(scenario.name for scenario in scenarios).items() if count > 1]
    if twice:
        raise ValueError(f"two scenarios are named {twice[0]!r}: rename one, its results would overwrite the other's")
