"""All checks of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lightning_advdef.evaluation.diagnostics import behaviour, comparisons, gradients
from lightning_advdef.evaluation.diagnostics.evidence import Evidence
from lightning_advdef.evaluation.diagnostics.finding import Finding
from lightning_advdef.evaluation.diagnostics.probes import Probes
from lightning_advdef.evaluation.diagnostics.suggestion import name_of, was_run
from lightning_advdef.evaluation.judge import Judge
from lightning_advdef.evaluation.rows import Rows

CHECKS: tuple[Callable[[Evidence], list[Finding]], ...] = (
    comparisons.black_box_stronger,
    comparisons.query_part_gains,
    comparisons.single_step_stronger,
    comparisons.more_steps_weaker,
    comparisons.not_converged,
    gradients.zero_gradients,
    gradients.gradient_not_finite,
    gradients.gradient_uncorrelated,
    gradients.images_untouched,
    behaviour.huge_budget_survived,
    behaviour.noise_flips,
    behaviour.defense_costs_accuracy,
    behaviour.no_adaptive_attack,
    behaviour.random_without_eot,
    behaviour.minimal_norm_of_random,
    behaviour.runs_capped,
)


def diagnose(rows: Rows, summary: Mapping[str, Any], judge: Judge, probes: Probes | None) -> list[dict[str, Any]]:
    """What the checks say, as plain values, in the order of the table in docs/diagnostics.md.

    Nobody is asked to run what was just run, under whatever name and whatever it found.

    Args:
        rows: Columns of all images.
        summary: What :func:`~lightning_advdef.evaluation.summary.summarise` made of them.
        judge: What judged them.
        probes: What extra passes found; None if there were none.
    """
    evidence = Evidence(rows, summary, judge, probes)
    findings = [finding for check in CHECKS for finding in check(evidence)]
    # of a scenario that stands for several, such as an adaptive one, rows are named <scenario>/<entry>
    names = {scenario.name.partition("/")[0] for scenario in judge.scenarios}
    run = {f.next for f in findings if name_of(f.next) in names or was_run(evidence, f.next)}
    return [replace(f, next="" if f.next in run else f.next).plain() for f in findings]
