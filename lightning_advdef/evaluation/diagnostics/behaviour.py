"""Checks of how the defense behaves, and of whether the evaluation suits it."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_advdef.attacks import MinimalNormAttack
from lightning_advdef.evaluation.diagnostics import suggestion
from lightning_advdef.evaluation.diagnostics.evidence import Evidence, gain, share
from lightning_advdef.evaluation.diagnostics.finding import Check, Finding, Measure
from lightning_advdef.types import DIFFERENTIATING

HUGE_BUDGET_SURVIVED = Check(
    "huge_budget_survived",
    "accuracy",
    0.0,
    "images survive an attack that may turn each of them into plain grey, so it is the attack that fails",
)
NOISE_FLIPS = Check(
    "noise_flips",
    "loss of accuracy",
    0.15,
    "random noise of 8/255 alone changes predictions: what an attack finds beyond it is less than it seems",
)
DEFENSE_COSTS_ACCURACY = Check(
    "defense_costs_accuracy",
    "loss of clean accuracy",
    0.02,
    "the test-time part makes images wrong that the bare classifier gets right without any attack",
)
NO_ADAPTIVE_ATTACK = Check(
    "no_adaptive_attack",
    "scenarios that know the test-time part",
    1,
    "the defense has a test-time part, and no attack was made for it",
    below=True,
)
RANDOM_WITHOUT_EOT = Check(
    "random_without_eot",
    "draws per gradient",
    2,
    "predictions differ between two passes, and no gradient attack averages over draws",
    below=True,
)
MINIMAL_NORM_OF_RANDOM = Check(
    "minimal_norm_of_random",
    "1 where two passes differ",
    0,
    "{scenario} stops at one lucky draw of a random defense: its norms are too small",
)
RUNS_CAPPED = Check(
    "runs_capped",
    "share of runs",
    0.0,
    "the test-time part took all the steps it may and was cut off: raise --model.max_iter",
)

_WEAK = "of few gradients or a smaller budget than the other scenarios"


def huge_budget_survived(evidence: Evidence) -> list[Finding]:
    """Of the images that were looked at again, against chance."""
    check = replace(HUGE_BUDGET_SURVIVED, threshold=_chance(evidence))
    if evidence.probes is None or evidence.probes.survived is None:
        return check.findings([])
    found = share(evidence.probes.survived, check.threshold)
    remedy = suggestion.knowing(evidence, check.name)
    return check.findings([Measure(*found, evidence.probes.scenario, next=remedy)])


def _chance(evidence: Evidence) -> float:
    """Accuracy of the best answer that knows no image."""
    return float(torch.bincount(evidence.rows["label"]).max()) / len(evidence.rows["label"])


def noise_flips(evidence: Evidence) -> list[Finding]:
    """Of the images that were looked at again."""
    if evidence.probes is None:
        return NOISE_FLIPS.findings([])
    before = evidence.rows["clean/correct"][evidence.probes.probed]
    found = gain(before, evidence.probes.noisy, NOISE_FLIPS.threshold)
    return NOISE_FLIPS.findings([Measure(*found, next=suggestion.noise(evidence, NOISE_FLIPS.name))])


def defense_costs_accuracy(evidence: Evidence) -> list[Finding]:
    """Of the images that the bare classifier saw."""
    if evidence.probes is None:
        return DEFENSE_COSTS_ACCURACY.findings([])
    deployed = evidence.rows["clean/correct"][evidence.probes.compared]
    found = gain(evidence.probes.undefended, deployed, DEFENSE_COSTS_ACCURACY.threshold)
    remedy = suggestion.knowing(evidence, DEFENSE_COSTS_ACCURACY.name)  # what the price buys
    return DEFENSE_COSTS_ACCURACY.findings([Measure(*found, next=remedy)])


def no_adaptive_attack(evidence: Evidence) -> list[Finding]:
    """Through a surrogate that the defense names, or BPDA; the full gradient where it names none."""
    check = NO_ADAPTIVE_ATTACK
    if evidence.has_test_time_part is None:
        return check.findings([])
    fitting = [
        scenario
        for scenario, summary in evidence.scenarios
        if scenario.attack.needs == "gradients" and evidence.knows_the_defense(scenario, summary["access"])
    ]
    check = check if evidence.has_test_time_part else replace(check, threshold=0)
    count = len(evidence.serious(fitting))
    if fitting and count < check.threshold:
        check = replace(
            check, meaning=f"the defense has a test-time part, and only a weak attack was made for it, {_WEAK}"
        )
    return check.findings([Measure(count, count < check.threshold, next=suggestion.knowing(evidence, check.name))])


def random_without_eot(evidence: Evidence) -> list[Finding]:
    """Of attacks that follow gradients of the deployed defense."""
    check = RANDOM_WITHOUT_EOT if evidence.stochastic else replace(RANDOM_WITHOUT_EOT, threshold=0)
    draws = {
        scenario.name: evidence.surrogate(scenario).draws * scenario.attack.own_draws
        for scenario, summary in evidence.scenarios
        if scenario.attack.needs == "gradients" and summary["access"] in DIFFERENTIATING
    }
    averaging = [scenario for scenario, _ in evidence.scenarios if draws.get(scenario.name, 0) > 1]
    serious = [scenario.name for scenario in evidence.serious(averaging)]
    weak = [scenario.name for scenario in averaging if scenario.name not in serious]
    most = max((count for name, count in draws.items() if name not in weak), default=0)
    if weak and most < check.threshold:
        meaning = f"predictions differ between two passes, and only a weak attack averages over draws, {_WEAK}"
        check = replace(check, meaning=meaning)
    remedy = suggestion.averaged_over_draws(evidence, check.name)
    return check.findings([Measure(most, most < check.threshold, next=remedy)])


def minimal_norm_of_random(evidence: Evidence) -> list[Finding]:
    """Of a random defense, any: the attack looks for a draw that suits it."""
    check = MINIMAL_NORM_OF_RANDOM
    random = evidence.stochastic
    measures = [
        Measure(int(random), random, scenario.name, next=suggestion.averaged_over_draws(evidence, check.name, scenario))
        for scenario, _ in evidence.scenarios
        if isinstance(scenario.attack, MinimalNormAttack)
    ]
    return check.findings(measures, applies=False)


def runs_capped(evidence: Evidence) -> list[Finding]:
    """On clean images and in every scenario."""
    rows = [("", evidence.summary), *((scenario.name, summary) for scenario, summary in evidence.scenarios)]
    shares = [(name, row["defense_capped"]) for name, row in rows if "defense_capped" in row]
    measures = [Measure(capped, capped > RUNS_CAPPED.threshold, name) for name, capped in shares]
    return RUNS_CAPPED.findings(measures, applies=False)
