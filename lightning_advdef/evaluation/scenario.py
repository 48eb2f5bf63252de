"""A named row of the evaluation: one attack on one surrogate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from lightning_advdef.attacks import Attack, FullGradient, Surrogate, SurrogateFactory
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.checkpoints import plain


@dataclass(frozen=True)
class Scenario:
    """What is run and what the attacker knows.

    Args:
        name: Name in the report, e.g. ``pgd20_l2``; letters, digits, ``_``, ``-`` and ``.``.
        attack: The attack with its settings.
        surrogate: What the attack differentiates: ``FullGradient`` (white box) unless stated; ``adaptive`` for each
            surrogate that the defense itself names, see :func:`expand`.

    Raises:
        ValueError: If the name cannot be a key of a result file.
    """

    signs: ClassVar[str] = "_-."

    name: str
    attack: Attack
    surrogate: Literal["adaptive"] | SurrogateFactory = FullGradient

    def __post_init__(self) -> None:
        """Checks the name."""
        if not self.name or not all(sign.isalnum() or sign in self.signs for sign in self.name):
            raise ValueError(f"a scenario's name has letters, digits, '_', '-' and '.' only, got {self.name!r}")
        if self.name == "clean":
            raise ValueError("'clean' names the images without attack: give the scenario another name")

    def bind(self, defense: nn.Module) -> Surrogate:
        """The surrogate of one defense.

        Raises:
            ValueError: If the scenario stands for several; :func:`expand` lists them.
        """
        if self.surrogate == "adaptive":
            raise ValueError(f"scenario {self.name!r} stands for one row per adaptive surrogate: expand it first")
        return self.surrogate(defense)

    def describe(self, surrogate: Surrogate) -> dict[str, Any]:
        """Everything needed to run it again, as plain values, given the bound surrogate."""
        return {
            "name": self.name,
            "attack": plain(self.attack),
            **surrogate.describe(),
        }


class AdaptiveScenario(Scenario):
    """One row of a scenario with ``surrogate: adaptive``, named ``<scenario>/<entry>``."""

    signs: ClassVar[str] = Scenario.signs + "/"


def expand(scenarios: Sequence[Scenario], defense: nn.Module) -> list[Scenario]:
    """The rows that are run: each ``adaptive`` scenario becomes one per surrogate that the defense names.

    A defense that names none is attacked through its full gradient, under the scenario's own name. All other scenarios
    stay as they are, so that expanding twice changes nothing.

    Args:
        scenarios: What the configuration asks for.
        defense: The deployed defense, or any network.

    Returns:
        The rows in the same order; adaptive ones in the order in which the defense lists its surrogates.

    Raises:
        ValueError: If two rows have one name, or an entry's name cannot be a key of a result file.
    """
    rows = [row for scenario in scenarios for row in _rows_of(scenario, defense)]
    require_unique_names(rows)
    return rows


def _rows_of(scenario: Scenario, defense: nn.Module) -> list[Scenario]:
    if scenario.surrogate != "adaptive":
        return [scenario]
    entries = as_defense(defense).adaptive_surrogates()
    if not entries:
        return [Scenario(scenario.name, scenario.attack)]
    return [AdaptiveScenario(f"{scenario.name}/{name}", scenario.attack, entry) for name, entry in entries.items()]


def require_unique_names(scenarios: Sequence[Scenario]) -> None:
    """Refuses two rows of one name.

    Raises:
        ValueError: If a name stands twice.
    """
    twice = [name for name, count in Counter(scenario.name for scenario in scenarios).items() if count > 1]
    if twice:
        raise ValueError(f"two scenarios are named {twice[0]!r}: rename one, its results would overwrite the other's")
