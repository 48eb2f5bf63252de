"""What the checks look at: rows, scenarios, the defense, and the probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from lightning_advdef.attacks import EOT, Attack, FixedBudgetAttack, FullGradient, Surrogate, SurrogateFactory
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.checkpoints import plain, same_settings
from lightning_advdef.evaluation.diagnostics.probes import Probes
from lightning_advdef.evaluation.judge import Judge
from lightning_advdef.evaluation.rows import Rows, classes_of, robust
from lightning_advdef.evaluation.scenario import SEVERAL, Scenario
from lightning_advdef.metrics import mean_interval, paired_difference
from lightning_advdef.types import DIFFERENTIATING, Norm

CONFIDENCE = 0.99  # there are many checks, so that one in twenty would be too many
_FULL, _EOT = plain(FullGradient), plain(EOT)


@dataclass(frozen=True)
class Evidence:
    """A finished evaluation.

    Args:
        rows: Columns of all images.
        summary: What :func:`~lightning_advdef.evaluation.summary.summarise` made of them.
        judge: What judged them.
        probes: What extra passes found; None if there were none.
    """

    rows: Rows
    summary: Mapping[str, Any]
    judge: Judge
    probes: Probes | None

    @cached_property
    def stochastic(self) -> bool:
        """Whether the defense answers differently when asked again."""
        return bool(self.rows["clean/stochastic"].any())

    @cached_property
    def classes(self) -> int:
        """Number of classes, as far as labels tell."""
        return classes_of(self.rows)

    @property
    def scenarios(self) -> list[tuple[Scenario, Mapping[str, Any]]]:
        """Each scenario with its summary."""
        return list(zip(self.judge.scenarios, self.summary["scenarios"], strict=True))

    def surrogate(self, scenario: Scenario) -> Surrogate:
        """What the scenario's attack differentiates."""
        return self.judge.runners[scenario.name].surrogate

    def gradients(self, scenario: Scenario) -> float:
        """Gradients that the attack takes of an image that holds, per draw; NaN if it does not say."""
        return scenario.attack.cost(self.classes).backward

    def correct(self, scenario: Scenario) -> Tensor:
        """Share of draws on which each image is right, shape ``(N,)``."""
        return robust(self.rows, scenario.name).double()

    @cached_property
    def right(self) -> Tensor:
        """Which images are right without an attack, on the draw that is stored, bool, shape ``(N,)``."""
        return self.rows["clean/prediction"] == self.rows["label"]

    def bounded(self) -> Iterator[tuple[Scenario, FixedBudgetAttack, Mapping[str, Any]]]:
        """Scenarios of a budget whose results are images."""
        for scenario, summary in self.scenarios:
            if isinstance(scenario.attack, FixedBudgetAttack) and scenario.attack.box and scenario.attack.eps > 0:
                yield scenario, scenario.attack, summary

    @cached_property
    def budgets(self) -> list[tuple[Norm, float]]:
        """Norm and size of every budget, in the order of the scenarios."""
        return list(dict.fromkeys((attack.norm, float(attack.eps)) for _, attack, _ in self.bounded()))

    def white_box(self, norm: Norm, eps: float) -> list[Scenario]:
        """Iterative attacks on the deployed defense by gradients alone within a budget, the strongest first."""
        found = [
            scenario
            for scenario, attack, summary in self.bounded()
            if (attack.norm, attack.eps) == (norm, eps)
            and all(each.needs == "gradients" for each in (attack, *attack.parts().values()))
            and summary["access"] in DIFFERENTIATING
            and not self.gradients(scenario) < SEVERAL
        ]
        return sorted(found, key=lambda scenario: float(self.correct(scenario).mean()))

    def serious(self, those: Sequence[Scenario]) -> list[Scenario]:
        """Which of some scenarios attack in earnest: by several gradients, and within no token budget.

        That is one below the smallest that the other scenarios state in its norm, controls by noise aside.
        """
        names = [scenario.name for scenario in those]
        stated: dict[Norm, float] = {}
        for scenario, attack, _ in self.bounded():
            if scenario.name not in names and attack.needs != "nothing":
                stated[attack.norm] = min(float(attack.eps), stated.get(attack.norm, math.inf))
        return [
            scenario
            for scenario in those
            if not self.gradients(scenario) < SEVERAL and not _is_token(scenario.attack, stated)
        ]

    @cached_property
    def named_surrogates(self) -> Mapping[str, SurrogateFactory]:
        """The adaptive surrogates that the defense names."""
        return as_defense(self.judge.defense).adaptive_surrogates()

    @property
    def has_test_time_part(self) -> bool | None:
        """Whether more than the bare classifier answers; None if nobody looked."""
        if self.named_surrogates:
            return True
        return None if self.probes is None else self.probes.has_test_time_part

    def knows_the_defense(self, scenario: Scenario, access: str) -> bool:
        """Whether the attacker differentiates something that fits the test-time part, where there is one."""
        # rows of ``surrogate: adaptive`` are named <scenario>/<entry>; a function among the entries has no description
        adaptive = any(name in self.named_surrogates for name in scenario.name.split("/")[1:])
        if adaptive or access in ("bpda", "adaptive"):
            return True
        if access not in DIFFERENTIATING:
            return False
        own: Any = (plain([scenario.surrogate]) or [None])[0]
        while own is not None and own["class_path"] == _EOT["class_path"]:
            own = own["init_args"].get("of", _FULL) if "init_args" in own else _FULL
        fitting = plain(list(self.named_surrogates.values())) if self.named_surrogates else [_FULL]
        # a YAML states defaults, too
        return own is not None and any(same_settings(own, each) for each in fitting)


def _is_token(attack: Attack, stated: Mapping[Norm, float]) -> bool:
    if not isinstance(attack, FixedBudgetAttack):
        return False
    return attack.eps <= 0 or attack.eps < 0.9 * stated.get(attack.norm, 0)  # 0.031 is often written for 8/255


def gain(weaker: Tensor, stronger: Tensor, threshold: float) -> tuple[float, bool]:
    """By how much accuracy is lower under ``stronger``, and whether that is surely more than the threshold.

    Args:
        weaker: Share of draws on which each image is right in one case, shape ``(N,)``, at least one image.
        stronger: The same in the other.
        threshold: Difference that does not matter.
    """
    found = paired_difference(weaker, stronger, CONFIDENCE)
    return found.value, found.interval.low > threshold


def share(those: Tensor, threshold: float) -> tuple[float, bool]:
    """The share of images for which something holds, bool, shape ``(N,)``, and whether it is surely more."""
    return float(those.double().mean()), mean_interval(those.double(), CONFIDENCE).low > threshold
