"""What a finished evaluation states: summary, circumstances, and what makes a number doubtful."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from lightning_advdef.attacks import MinimalNormAttack
from lightning_advdef.attacks.verdict import verdict_flags
from lightning_advdef.evaluation.judge import Judge
from lightning_advdef.evaluation.rows import Rows
from lightning_advdef.evaluation.summary import summarise

_DOUBTFUL_ZERO_SHARE = 0.05  # some networks saturate on single images; more than that is masking
_DOUBTFUL_QUERY_GAIN = 0.002  # AutoAttack's own threshold, in accuracy
_VERSIONS = ("lightning-advdef", "torch", "pytorch-lightning")


def make_result(rows: Rows, judge: Judge, device: str, world_size: int) -> dict[str, Any]:
    """Everything of ``robustness.json`` but the fingerprint, as plain values.

    Args:
        rows: Columns of all images.
        judge: What judged them.
        device: Where it ran.
        world_size: Number of processes.
    """
    summary = summarise(rows, judge.scenarios, judge.describe(), judge.settings.draws)
    stochastic = bool(rows["clean/stochastic"].any())
    return {
        "summary_of": "test",
        **summary,
        "stochastic": stochastic,
        "in_use": judge.in_use(),
        "flags": verdict_flags() | {"search": judge.settings.search},
        "versions": {name: version(name) for name in _VERSIONS},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "world_size": world_size,
        "warnings": warnings_about(judge, stochastic, summary),
    }


def warnings_about(judge: Judge, stochastic: bool, summary: Mapping[str, Any]) -> list[str]:
    """What makes a number of a summary doubtful, in a sentence each."""
    scenarios = summary["scenarios"]
    warnings = [
        f"{scenario['name']}: the gradient was zero in all pixels for {100 * scenario['zero_gradient_share']:.0f}% "
        "of the images, so that they survive says nothing; attack with loss: margin if the network is too sure, or "
        "through a surrogate that goes around the step that cuts the gradient, such as BPDA or Undefended"
        for scenario in scenarios
        if scenario["zero_gradient_share"] > _DOUBTFUL_ZERO_SHARE
    ]
    warnings += [
        f"{scenario['name']}: {part}, which sees scores alone, broke images that no gradient attack before it did; the "
        "gradients may mislead: attack with more restarts, BPDA, EOT or transferred images"
        for scenario, part in _queries_that_gain(judge, scenarios)
    ]
    warnings += [
        f"{row.get('name', 'clean')}: {100 * row['defense_capped']:.0f}% of the runs of the test-time part took all "
        "the steps they may, and were cut off: raise --model.max_iter"
        for row in (summary, *scenarios)
        if row.get("defense_capped")
    ]
    if stochastic and not getattr(judge.defense, "stochastic", False):
        warnings.append("predictions differ between two passes: graded on several draws; attack it with EOT")
    if stochastic and any(isinstance(scenario.attack, MinimalNormAttack) for scenario in judge.scenarios):
        warnings.append("minimal-norm attacks stop at one lucky draw of a random defense: their norms are too small")
    return warnings


def _queries_that_gain(judge: Judge, scenarios: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    found = []
    for scenario, summary in zip(judge.scenarios, scenarios, strict=True):
        before = summary["parts"][0]["accuracy_before"] if summary.get("parts") else 0.0
        for (name, attack), part in zip(scenario.attack.parts().items(), summary.get("parts", []), strict=False):
            gain = before - part["cumulative_accuracy"]["value"]
            if attack.needs == "scores" and gain > _DOUBTFUL_QUERY_GAIN:
                found.append((summary, name))
            before = part["cumulative_accuracy"]["value"]
    return found
