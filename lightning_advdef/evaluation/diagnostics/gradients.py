"""Checks of the gradients that attacks follow, and of whether they move anything."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_advdef.attacks import FixedBudgetAttack
from lightning_advdef.evaluation.diagnostics import suggestion
from lightning_advdef.evaluation.diagnostics.evidence import CONFIDENCE, Evidence, share
from lightning_advdef.evaluation.diagnostics.finding import Check, Finding, Measure
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.metrics import normal_interval

ZERO_GRADIENTS = Check(
    "zero_gradients",
    "share of images",
    0.05,
    "the gradient that {scenario} follows was zero in all pixels, so that an image survives says nothing",
)
GRADIENT_NOT_FINITE = Check(
    "gradient_not_finite",
    "share of images",
    0.0,
    "gradients are infinite or no number, and an attack that follows them goes nowhere",
)
GRADIENT_UNCORRELATED = Check(
    "gradient_uncorrelated",
    "mean cosine",
    0.5,
    "gradients at two points that nobody can tell apart have little in common, so that no step of an attack prepares "
    "the next",
    below=True,
)
IMAGES_UNTOUCHED = Check(
    "images_untouched",
    "share of images",
    0.05,
    "{scenario} gave images back as they were, so that they survive says nothing",
)


def zero_gradients(evidence: Evidence) -> list[Finding]:
    """Images that are right without an attack, in every scenario that takes gradients."""
    measures = []
    for scenario, _ in evidence.scenarios:
        zero = evidence.rows[f"{scenario.name}/zero_gradients"][evidence.right] > 0
        if scenario.attack.needs == "gradients" and len(zero):
            measure = _measure(evidence, ZERO_GRADIENTS, zero, scenario)
            if zero.all() and not evidence.named_surrogates:
                # no loss brings a gradient back, and nobody knows what stands in the way
                by_scores = suggestion.by_scores(evidence, ZERO_GRADIENTS.name, scenario)
                measure = replace(measure, next=by_scores or measure.next)
            measures.append(measure)
    return ZERO_GRADIENTS.findings(measures, suggestion.gradient_attack(evidence, ZERO_GRADIENTS.name))


def images_untouched(evidence: Evidence) -> list[Finding]:
    """Of attacks with a budget; a cascade gives images back that survive all of its parts."""
    measures = []
    for scenario, attack, _ in evidence.bounded():
        if attack.parts() or attack.needs == "nothing":
            continue
        still = evidence.rows[f"{scenario.name}/linf"][evidence.right] == 0
        if len(still):
            measures.append(_measure(evidence, IMAGES_UNTOUCHED, still, scenario))
    return IMAGES_UNTOUCHED.findings(measures)


def _measure(evidence: Evidence, check: Check, those: Tensor, scenario: Scenario) -> Measure:
    measured, raised = share(those, check.threshold)
    return Measure(measured, raised, scenario.name, next=_around(evidence, check, scenario))


def _around(evidence: Evidence, check: Check, scenario: Scenario) -> str:
    """Past the step that cuts the gradient; of a plain network that is too sure, by its margin."""
    loss = getattr(scenario.attack, "loss", None)
    plain_network = not evidence.has_test_time_part and isinstance(scenario.attack, FixedBudgetAttack)
    if plain_network and loss != "margin" and scenario.attack.needs == "gradients":
        return suggestion.by_margin(evidence, check.name, scenario)
    return suggestion.knowing(evidence, check.name, scenario)


def gradient_not_finite(evidence: Evidence) -> list[Finding]:
    """Of the images that were looked at again."""
    if evidence.probes is None:
        return GRADIENT_NOT_FINITE.findings([])
    broken, raised = share(~evidence.probes.finite, GRADIENT_NOT_FINITE.threshold)
    remedy = suggestion.by_scores(evidence, GRADIENT_NOT_FINITE.name)
    return GRADIENT_NOT_FINITE.findings([Measure(broken, raised, evidence.probes.scenario, next=remedy)])


def gradient_uncorrelated(evidence: Evidence) -> list[Finding]:
    """Of the images that were looked at again; a random defense draws anew at the second point."""
    if evidence.probes is None:
        return GRADIENT_UNCORRELATED.findings([])
    cosines, name = evidence.probes.cosines, GRADIENT_UNCORRELATED.name
    raised = normal_interval(cosines, CONFIDENCE).high < GRADIENT_UNCORRELATED.threshold
    make = suggestion.averaged_over_draws if evidence.stochastic else suggestion.knowing
    return GRADIENT_UNCORRELATED.findings(
        [Measure(float(cosines.mean()), raised, evidence.probes.scenario, next=make(evidence, name))]
    )
