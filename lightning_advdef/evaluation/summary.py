"""From rows to the numbers of a table; everything shown later is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_advdef.attacks import Attack, FixedBudgetAttack, MinimalNormAttack
from lightning_advdef.attacks.cascade import WRONG_BEFORE
from lightning_advdef.evaluation.rows import Rows, accuracy, classes_of, robust
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.evaluation.worst import worst_within
from lightning_advdef.metrics import norm_summary, relative_norm
from lightning_advdef.types import Norm


def attack_norm(attack: Attack) -> Norm:
    """The norm an attack's budget or result is measured in."""
    if isinstance(attack, FixedBudgetAttack):
        return attack.norm
    return attack.size_norm if isinstance(attack, MinimalNormAttack) else "l2"


def fooled(rows: Mapping[str, Tensor], scenario: Scenario) -> Tensor:
    """Whether a minimal-norm attack reached its goal, bool, shape ``(N,)``: another class than the one it leaves."""
    attack, prediction = scenario.attack, rows[f"{scenario.name}/prediction"]
    if isinstance(attack, MinimalNormAttack) and attack.leaves == "label":
        return prediction != rows["label"]
    return prediction != rows["clean/prediction"]


def validation_metric_names(scenarios: Sequence[Scenario]) -> list[str]:
    """Names of what ``fit`` logs of an attacked validation split."""
    minimal = [scenario for scenario in scenarios if isinstance(scenario.attack, MinimalNormAttack)]
    of_minimal = [f"val/{kind}/{s.name}" for s in minimal for kind in ("rho", "mean_norm")]
    of_budgets = [f"val/{worst_case_name(*budget)}" for budget in _budgets(scenarios)]
    return [f"val/robust_accuracy/{s.name}" for s in scenarios] + of_minimal + of_budgets


def worst_case_name(norm: Norm, eps: float) -> str:
    """Name under which the accuracy under all scenarios together is logged."""
    return f"worst_case_accuracy/{norm}_{eps:.4g}"


def validation_metrics(rows: Rows, scenarios: Sequence[Scenario]) -> dict[str, float]:
    """Robust accuracy of each scenario; rho and mean norm of minimal-norm attacks; worst case at each budget.

    They have the order of their names. The mean norm leaves images out that were misclassified from the start.
    """
    values = [float(robust(rows, scenario.name).mean()) for scenario in scenarios]
    for scenario in scenarios:
        if isinstance(scenario.attack, MinimalNormAttack):
            found = _minimal_norm_summary(rows, scenario, attack_norm(scenario.attack))
            values += [found["rho"], found["norms"]["mean_excluded"]]
    values += [case["accuracy"]["value"] for case in _worst_cases(rows, scenarios)]
    return dict(zip(validation_metric_names(scenarios), values, strict=True))


def summarise(
    rows: Rows, scenarios: Sequence[Scenario], described: Sequence[Mapping[str, Any]], draws: int = 1
) -> dict[str, Any]:
    """The summary of an evaluation, as plain values.

    Args:
        rows: Columns of all images.
        scenarios: What was run.
        described: The scenarios as plain values, in the same order.
        draws: Passes on which each image was graded if the defense is stochastic.
    """
    graded = draws if bool(rows["clean/stochastic"].any()) else 1
    return {
        "clean_accuracy": accuracy(rows["clean/correct"]),
        **_over_draws(rows["clean/correct"], graded),
        **_defense_steps(rows, "clean"),
        **_rejections(rows, "clean"),
        "scenarios": [
            {
                **description,
                **_scenario_summary(rows, scenario),
                **_over_draws(robust(rows, scenario.name), graded),
            }
            for scenario, description in zip(scenarios, described, strict=True)
        ],
        "worst_case": _worst_cases(rows, scenarios),
    }


def _worst_cases(rows: Rows, scenarios: Sequence[Scenario]) -> list[dict[str, Any]]:
    """Accuracy under all scenarios together, for each budget that some scenario states.

    Perturbations that leave the pixel range are no images and count nowhere.
    """
    names = [scenario.name for scenario in scenarios if scenario.attack.box]
    return [
        {"norm": norm, "eps": eps, "accuracy": accuracy(worst_within(rows, names, norm, eps))}
        for norm, eps in _budgets(scenarios)
    ]


def _budgets(scenarios: Sequence[Scenario]) -> list[tuple[Norm, float]]:
    boxed = [scenario.attack for scenario in scenarios if scenario.attack.box]
    return sorted({(attack.norm, float(attack.eps)) for attack in boxed if isinstance(attack, FixedBudgetAttack)})


def _scenario_summary(rows: Rows, scenario: Scenario) -> dict[str, Any]:
    name, norm = scenario.name, attack_norm(scenario.attack)
    right = rows["clean/prediction"] == rows["label"]
    lost = right & (rows[f"{name}/prediction"] != rows["label"])
    summary: dict[str, Any] = {
        "norm": norm,
        "robust_accuracy": accuracy(robust(rows, name)),
        "mean_l2": float(rows[f"{name}/l2"].double().mean()),
        "attack_success_rate": float(lost.sum() / right.sum().clamp_min(1)),
        "zero_gradient_share": float((right & (rows[f"{name}/zero_gradients"] > 0)).sum() / right.sum().clamp_min(1)),
        "passes": {kind: float(rows[f"{name}/{kind}"].double().mean()) for kind in ("forward", "backward")},
        "few_gradients": scenario.takes_few_gradients(classes_of(rows)),
    }
    summary |= _defense_steps(rows, name) | _rejections(rows, name)
    if isinstance(scenario.attack, FixedBudgetAttack):
        summary["eps"] = float(scenario.attack.eps)
    if f"{name}/rounded_correct" in rows:
        summary["rounded_accuracy"] = accuracy(robust(rows, name, "rounded_correct"))
    if scenario.attack.parts():
        summary["parts"] = _part_summaries(rows, scenario)
    if isinstance(scenario.attack, MinimalNormAttack):
        summary |= _minimal_norm_summary(rows, scenario, norm)
    return summary


def _over_draws(shares: Tensor, draws: int) -> dict[str, Any]:
    """What the mean over draws hides: accuracy of an image's worst draw, and the spread between single draws.

    Args:
        shares: Share of draws on which each image is right, shape ``(N,)``.
        draws: Their number; below 2 there is nothing to say.

    Returns:
        ``every_draw``, the share of images that are right on all draws, and ``draw_deviation``, the standard deviation
        of the accuracy of one draw, from the unbiased variances of the images, whose draws are independent.
    """
    if draws < 2:
        return {}
    variances = shares.double() * (1 - shares.double()) * draws / (draws - 1)
    return {
        "every_draw": accuracy((shares == 1).float()),
        "draw_deviation": float(variances.sum().sqrt() / len(shares)),
    }


def _defense_steps(rows: Rows, name: str) -> dict[str, Any]:
    """Mean steps of an iterative test-time part and the share of runs that it cut off."""
    columns = ("defense_steps", "defense_capped")
    return {column: float(rows[f"{name}/{column}"].double().mean()) for column in columns if f"{name}/{column}" in rows}


def _rejections(rows: Rows, name: str) -> dict[str, Any]:
    """Share of images that a detector rejects, and of those that are right or rejected.

    As for robust accuracy, an image that is wrong without an attack counts as broken, though rejected.
    """
    if f"{name}/rejected" not in rows:
        return {}
    return {
        "rejected": accuracy(rows[f"{name}/rejected"]),
        "right_or_rejected": accuracy(robust(rows, name, "correct_or_rejected")),
    }


def _part_summaries(rows: Rows, scenario: Scenario) -> list[dict[str, Any]]:
    """What each part of a cascade did, in order.

    ``cumulative_accuracy`` is the accuracy after this part and all before it; ``accuracy`` that of the part by itself,
    None where it was run on survivors alone. Both come from the draws that decided about survivors. Of a detector they
    do not excuse what is rejected, though ``broken`` counts only what is not; ``cumulative_right_or_rejected`` and
    ``right_or_rejected`` do.
    """
    name, clean = scenario.name, (rows["clean/correct"] > 0).float()
    columns = {"accuracy": "correct"}
    if f"{name}/rejected" in rows:
        columns["right_or_rejected"] = "correct_or_rejected"
    standing, parts = dict.fromkeys(columns, clean * (rows[f"{name}/broken_by"] != WRONG_BEFORE)), []
    for number, part in enumerate(scenario.attack.parts()):
        attacked = ~rows[f"{name}/{part}/correct"].isnan()
        alone = bool(attacked[clean > 0].all())
        before = standing["accuracy"]
        shares: dict[str, Any] = {}
        for title, column in columns.items():
            after = rows[f"{name}/{part}/{column}"]
            standing[title] = torch.fmin(standing[title], after)
            shares[f"cumulative_{title}"] = accuracy(standing[title])
            shares[title] = accuracy(torch.fmin(clean, after)) if alone else None
        parts.append(
            {
                "name": part,
                "attacked": int(attacked.sum()),
                "broken": int((rows[f"{name}/broken_by"] == number).sum()),
                "accuracy_before": float(before.double().mean()),
                **shares,
                "passes": {
                    kind: float(rows[f"{name}/{part}/{kind}"].double().mean()) for kind in ("forward", "backward")
                },
            }
        )
    return parts


def _minimal_norm_summary(rows: Rows, scenario: Scenario, norm: Norm) -> dict[str, Any]:
    """Norm statistics; rho is Eq. 7 of the Deep Defense paper, over all images, from the predicted class."""
    norms, images = rows[f"{scenario.name}/{norm}"], rows[f"clean/{norm}"]
    reached = fooled(rows, scenario)
    right = rows["clean/prediction"] == rows["label"]
    rho = relative_norm(norms, images)
    summary = {
        "rho": rho.mean,
        "median_rho": rho.median,
        "rho_correct_only": relative_norm(norms[right], images[right]).mean,
        "share_fooled": float(reached.double().mean()),
        "norms": norm_summary(norms, reached, ~right)._asdict(),
    }
    if f"clean/centred_{norm}" in rows:
        summary["rho_centred"] = relative_norm(norms, rows[f"clean/centred_{norm}"]).mean
    return summary
