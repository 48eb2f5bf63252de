"""Checks that compare attacks with each other, image by image."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

from lightning_advdef.attacks import FixedBudgetAttack
from lightning_advdef.checkpoints import plain
from lightning_advdef.evaluation.diagnostics import suggestion
from lightning_advdef.evaluation.diagnostics.evidence import Evidence, gain
from lightning_advdef.evaluation.diagnostics.finding import Check, Finding, Measure
from lightning_advdef.evaluation.scenario import SEVERAL, Scenario
from lightning_advdef.types import DIFFERENTIATING

_UNIT = "difference in accuracy"
_SMALL = 0.002  # what AutoAttack's authors take for a sign, https://github.com/fra31/auto-attack
_EFFORT = ("steps", "restarts", "step_size")

BLACK_BOX_STRONGER = Check(
    "black_box_stronger",
    _UNIT,
    _SMALL,
    "{other} breaks images that {scenario} does not, though it knows less of the defense: the gradients mislead",
)
QUERY_PART_GAINS = Check(
    "query_part_gains",
    _UNIT,
    _SMALL,
    "{scenario}: {other}, which sees scores alone, broke images that no gradient attack before it did: the gradients "
    "mislead",
)
SINGLE_STEP_STRONGER = Check(
    "single_step_stronger",
    _UNIT,
    _SMALL,
    "{other} takes one step and breaks images that {scenario} does not: the gradients far from an image mislead",
)
MORE_STEPS_WEAKER = Check(
    "more_steps_weaker",
    _UNIT,
    _SMALL,
    "{scenario} takes more steps or restarts than {other} and breaks fewer images: its steps do not climb",
)
NOT_CONVERGED = Check(
    "not_converged",
    _UNIT,
    0.02,
    "{scenario} still breaks more images than {other}, which is the same attack with fewer steps or restarts: more of "
    "them would break more",
)


def black_box_stronger(evidence: Evidence) -> list[Finding]:
    """Against the strongest iterative gradient attack of the same budget."""
    measures, white_boxes = [], [white for budget in evidence.budgets for white in evidence.white_box(*budget)[:1]]
    for black, attack, summary in evidence.bounded():
        whites = evidence.white_box(attack.norm, float(attack.eps))
        if summary["access"] in DIFFERENTIATING or not whites:
            continue
        found = gain(evidence.correct(whites[0]), evidence.correct(black), _SMALL)
        remedy = suggestion.knowing(evidence, BLACK_BOX_STRONGER.name, whites[0])
        measures.append(Measure(*found, whites[0].name, black.name, remedy))
    make = suggestion.by_scores if white_boxes else suggestion.gradient_attack
    return BLACK_BOX_STRONGER.findings(measures, make(evidence, BLACK_BOX_STRONGER.name))


def query_part_gains(evidence: Evidence) -> list[Finding]:
    """Parts of a cascade that come after an iterative gradient attack on the deployed defense.

    Of a random defense nothing is said: an image that fresh draws get wrong need not have been moved any further.
    """
    measures = []
    for scenario, attack, summary in evidence.bounded():
        if summary["access"] not in DIFFERENTIATING or evidence.stochastic:
            continue
        name, gradients = scenario.name, False
        standing = (evidence.rows["clean/correct"] > 0).double()
        for part, each in attack.parts().items():
            after = standing.fmin(evidence.rows[f"{name}/{part}/correct"].double())
            if each.needs == "scores" and gradients:
                remedy = suggestion.knowing(evidence, QUERY_PART_GAINS.name, scenario)
                measures.append(Measure(*gain(standing, after, _SMALL), name, part, remedy))
            gradients |= each.needs == "gradients" and not each.cost(evidence.classes).backward < SEVERAL
            standing = after
    return QUERY_PART_GAINS.findings(measures)


def single_step_stronger(evidence: Evidence) -> list[Finding]:
    """Against the strongest iterative attack on the same surrogate, of the same budget."""
    measures = []
    for single, attack, summary in evidence.bounded():
        if summary["access"] not in DIFFERENTIATING or evidence.gradients(single) != 1:
            continue
        iterative = [
            scenario
            for scenario in evidence.white_box(attack.norm, float(attack.eps))
            if evidence.surrogate(scenario).describe() == evidence.surrogate(single).describe()
        ]
        for strongest in iterative[:1]:
            found = gain(evidence.correct(strongest), evidence.correct(single), _SMALL)
            remedy = suggestion.knowing(evidence, SINGLE_STEP_STRONGER.name, strongest)
            measures.append(Measure(*found, strongest.name, single.name, remedy))
    return SINGLE_STEP_STRONGER.findings(measures)


def more_steps_weaker(evidence: Evidence) -> list[Finding]:
    """Each attack against the same one with fewer steps or restarts."""
    measures = []
    for family in families(evidence):
        for short, long in pairwise(family):
            found = gain(evidence.correct(long), evidence.correct(short), _SMALL)
            remedy = suggestion.knowing(evidence, MORE_STEPS_WEAKER.name, long)
            measures.append(Measure(*found, long.name, short.name, remedy))
    return MORE_STEPS_WEAKER.findings(measures, _longer(evidence, MORE_STEPS_WEAKER))


def not_converged(evidence: Evidence) -> list[Finding]:
    """The longest of each kind of attack against the one before."""
    measures = []
    for *_, short, long in families(evidence):
        found = gain(evidence.correct(short), evidence.correct(long), NOT_CONVERGED.threshold)
        measures.append(Measure(*found, long.name, short.name, suggestion.longer(NOT_CONVERGED.name, long)))
    return NOT_CONVERGED.findings(measures, _longer(evidence, NOT_CONVERGED))


def families(evidence: Evidence) -> list[list[Scenario]]:
    """Scenarios that differ in steps and restarts alone, by rising effort; those of one member left out.

    Of those with as many gradients, such as two step sizes, the strongest stands for all.
    """
    groups: defaultdict[str, list[Scenario]] = defaultdict(list)
    for scenario, attack, summary in evidence.bounded():
        if summary["access"] in DIFFERENTIATING and evidence.gradients(scenario) >= SEVERAL:
            groups[_kind(evidence, scenario, attack)].append(scenario)
    return [family for group in groups.values() if len(family := _by_effort(evidence, group)) > 1]


def _by_effort(evidence: Evidence, group: list[Scenario]) -> list[Scenario]:
    strongest: dict[float, Scenario] = {}
    for scenario in sorted(group, key=lambda scenario: float(evidence.correct(scenario).mean())):
        strongest.setdefault(evidence.gradients(scenario), scenario)
    return [strongest[gradients] for gradients in sorted(strongest)]


def _kind(evidence: Evidence, scenario: Scenario, attack: FixedBudgetAttack) -> str:
    described = plain(attack)
    settings = {name: value for name, value in described["init_args"].items() if name not in _EFFORT}
    return json.dumps([described["class_path"], settings, evidence.surrogate(scenario).describe()], sort_keys=True)


def _longer(evidence: Evidence, check: Check) -> str:
    """A second length of the strongest attack that has a length."""
    strongest = [white for budget in evidence.budgets for white in evidence.white_box(*budget)]
    return next((text for white in strongest if (text := suggestion.longer(check.name, white))), "")
