"""A named row of the evaluation: one attack on one surrogate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal

from torch import nn

from lightning_advdef.attacks import EOT, Attack, FixedBudgetAttack, FullGradient, Surrogate, SurrogateFactory
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.checkpoints import plain
from lightning_advdef.data.specs import standard_eps
from lightning_advdef.hashing import file_hashes
from lightning_advdef.types import Access, Eps

SEVERAL = 10  # gradients from which an attack counts as iterative


@dataclass(frozen=True)
class Scenario:
    """What is run and what the attacker knows.

    Args:
        name: Name in the report, e.g. ``pgd20_l2``; letters, digits, ``_``, ``-`` and ``.``.
        attack: The attack with its settings.
        surrogate: What the attack differentiates: ``FullGradient`` (white box) unless stated; ``adaptive`` for each
            surrogate that the defense itself names, see :func:`expand`.
        samples: Draws of a stochastic defense over which every adaptive surrogate averages its loss in each step.
        eps: Budgets in place of the attack's own: a list gives a row each; ``standard`` takes what is usual for the
            data set (``data/specs.py``), and the attack's own eps where there is none.
        after: Name of an earlier scenario of a smaller budget: images that it broke count as broken here and are not
            attacked again. Lists of eps set it by themselves.

    Raises:
        ValueError: If the name cannot be a key of a result file.
    """

    signs: ClassVar[str] = "_-."

    name: str
    attack: Attack
    surrogate: Literal["adaptive"] | SurrogateFactory = FullGradient
    samples: int = 1
    eps: Literal["standard"] | list[Eps] | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        """Checks the name."""
        if not self.name or not all(sign.isalnum() or sign in self.signs for sign in self.name):
            raise ValueError(f"a scenario's name has letters, digits, '_', '-' and '.' only, got {self.name!r}")
        if self.name == "clean":
            raise ValueError("'clean' names the images without attack: give the scenario another name")
        if self.samples < 1 or (self.samples > 1 and self.surrogate != "adaptive"):
            raise ValueError(
                f"{self.name}: samples must be at least 1 and belongs to surrogate: adaptive, got {self.samples}; "
                "other surrogates are averaged by {class_path: EOT, init_args: {samples: 4, of: BPDA}}"
            )
        if self.eps is not None and not isinstance(self.attack, FixedBudgetAttack):
            raise ValueError(
                f"{self.name}: {type(self.attack).__name__} has no budget that eps could replace: leave it out"
            )
        if isinstance(self.eps, list):
            if len(set(self.eps)) != len(self.eps) or not self.eps:
                raise ValueError(f"{self.name}: eps must be different numbers, got {self.eps}")
            object.__setattr__(self, "eps", [Eps(size) for size in self.eps])

    def takes_few_gradients(self, classes: int) -> bool:
        """Whether its attack follows gradients alone, but fewer of an image that holds than one that iterates."""
        parts = (self.attack, *self.attack.parts().values())
        return all(part.needs == "gradients" for part in parts) and self.attack.cost(classes).backward < SEVERAL

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
        attack = plain(self.attack)
        return {
            "name": self.name,
            "attack": attack,
            "attack_files": file_hashes(attack),
            "parts": list(self.attack.parts()),
            **surrogate.describe(),
            "made_by": plain([self.surrogate]),
            "access": self._access(surrogate),
            "after": self.after,
        }

    def _access(self, surrogate: Surrogate) -> Access:
        """What the attacker knows: an attack that takes no gradients needs less than its surrogate offers."""
        if self.attack.needs == "nothing":
            return "none"
        return "query" if self.attack.needs == "scores" and surrogate.access in ("white", "bpda") else surrogate.access


class ExpandedScenario(Scenario):
    """One row of a scenario that stands for several, named ``<scenario>/<entry>``."""

    signs: ClassVar[str] = Scenario.signs + "/"


def expand(scenarios: Sequence[Scenario], defense: nn.Module) -> list[Scenario]:
    """The rows that are run: one per surrogate of an ``adaptive`` scenario, one per budget.

    A defense that names no adaptive surrogate is attacked through its full gradient, under the scenario's own name; the
    gradient of a stochastic one is averaged over ``samples``, as that of any surrogate it names would be. Of several
    budgets the smallest comes first, and each takes over the images that the one before it broke. All other
    scenarios stay as they are, so that expanding twice changes nothing.

    Args:
        scenarios: What the configuration asks for.
        defense: The deployed defense, or any network.

    Returns:
        The rows in the same order; adaptive ones in the order in which the defense lists its surrogates.

    Raises:
        ValueError: If two rows have one name, an entry's name cannot be a key of a result file, or ``after`` names no
            earlier row of a smaller budget.
    """
    rows = [row for scenario in scenarios for each in _surrogates(scenario, defense) for row in _budgets(each, defense)]
    require_unique_names(rows)
    _require_smaller_budgets(rows)
    return rows


def _surrogates(scenario: Scenario, defense: nn.Module) -> list[Scenario]:
    if scenario.surrogate != "adaptive":
        return [scenario]
    entries = as_defense(defense).adaptive_surrogates()
    averaged = scenario.samples > 1 and as_defense(defense).stochastic
    if not entries:
        whole = partial(EOT, of=FullGradient, samples=scenario.samples) if averaged else FullGradient
        return [replace(scenario, surrogate=whole, samples=1)]
    if averaged:
        entries = {name: partial(EOT, of=entry, samples=scenario.samples) for name, entry in entries.items()}
    named = {f"{scenario.name}/{name}": entry for name, entry in entries.items()}
    return [_row(scenario, name=name, surrogate=entry, samples=1) for name, entry in named.items()]


def _budgets(scenario: Scenario, defense: nn.Module) -> list[Scenario]:
    if scenario.eps is None:
        return [scenario]
    attack = scenario.attack
    assert isinstance(attack, FixedBudgetAttack)
    if scenario.eps == "standard":
        usual = standard_eps(getattr(getattr(defense, "spec", None), "name", ""), attack.norm)
        return [replace(scenario, attack=attack if usual is None else attack.with_eps(usual), eps=None)]
    sizes = sorted(scenario.eps)
    names = [f"{scenario.name}/eps{size:.4g}" for size in sizes]
    before = [scenario.after, *names[:-1]]
    return [
        _row(scenario, name=name, attack=attack.with_eps(size), eps=None, after=after)
        for name, size, after in zip(names, sizes, before, strict=True)
    ]


def _row(scenario: Scenario, **changes: Any) -> ExpandedScenario:
    settings = {field.name: getattr(scenario, field.name) for field in fields(scenario)}
    return ExpandedScenario(**settings | changes)


def up_to(name: str, rows: Sequence[Scenario]) -> list[Scenario]:
    """The row of that name behind those that it continues; empty if there is none."""
    named = {row.name: row for row in rows}
    chain: list[Scenario] = []
    row = named.get(name)
    while row is not None and row not in chain:
        chain.insert(0, row)
        row = named.get(row.after) if row.after else None
    return chain


def _require_smaller_budgets(rows: Sequence[Scenario]) -> None:
    earlier: dict[str, Attack] = {}
    for row in rows:
        if row.after is not None and not _is_smaller(earlier.get(row.after), row.attack):
            raise ValueError(
                f"{row.name}: after takes the name of an earlier scenario of a smaller budget in the same norm, got "
                f"{row.after!r}"
            )
        earlier[row.name] = row.attack


def _is_smaller(one: Attack | None, other: Attack) -> bool:
    if not (isinstance(one, FixedBudgetAttack) and isinstance(other, FixedBudgetAttack)):
        return False
    return (one.norm, one.box) == (other.norm, other.box) and one.eps < other.eps


def require_unique_names(scenarios: Sequence[Scenario]) -> None:
    """Refuses two rows of one name.

    Raises:
        ValueError: If a name stands twice.
    """
    twice = [name for name, count in Counter(scenario.name for scenario in scenarios).items() if count > 1]
    if twice:
        raise ValueError(f"two scenarios are named {twice[0]!r}: rename one, its results would overwrite the other's")
