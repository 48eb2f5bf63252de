"""A result as a record of RobustBench: what its ``model_info/<dataset>/<threat>/<name>.json`` hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.run import Run


def to_record(run: Run) -> str:
    """The record of one run, as JSON; what a result cannot know, such as the paper, is null.

    Source of the format: RobustBench, https://github.com/RobustBench/robustbench, ``model_info``. Accuracies are
    percentages written as text.

    Args:
        run: An evaluated run. ``autoattack_acc`` is null unless AutoAttack was run on it through its full gradient.

    Raises:
        ResultFolderError: If AutoAttack was run with several budgets, of which a record states one.
    """
    result = run.result
    attacks = [row for row in result["scenarios"] if _is_autoattack(row)]
    if len(attacks) > 1:
        names = ", ".join(row["name"] for row in attacks)
        raise ResultFolderError(
            f"{run.folder} has AutoAttack with several budgets ({names}), and a record of RobustBench states one: "
            "test with one of them and another --name"
        )
    attack = attacks[0] if attacks else None
    model = result.get("fingerprint", {}).get("model", {})
    spec = result.get("fingerprint", {}).get("data", {}).get("spec")
    findings = result.get("diagnostics", [])
    record = {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": None,
        # a test-time part that iterates makes as many as it needs
        "number_forward_passes": None if "defense_steps" in result else model.get("votes"),
        "dataset": spec,
        "venue": None,
        "architecture": _class(model.get("network")),
        "eps": None if attack is None else _fraction(attack),
        "clean_acc": _percent(result["clean_accuracy"]),
        "reported": None,
        "autoattack_acc": None if attack is None else _percent(attack["robust_accuracy"]),
        "footnote": _footnote(run, attack),
        "unreliable": any(map(_is_doubt, findings)) if findings else None,
    }
    return json.dumps(record, indent=2) + "\n"


def _is_doubt(finding: Mapping[str, Any]) -> bool:
    # what a defense costs is no masking
    return bool(finding["status"] == "raised" and finding["name"] != "defense_costs_accuracy")


def _is_autoattack(row: Mapping[str, Any]) -> bool:
    return bool(row["attack"]["class_path"].endswith(".AutoAttack") and row["access"] == "white")


def _percent(accuracy: Mapping[str, Any]) -> str:
    return f"{100 * accuracy['value']:.2f}"


def _fraction(row: Mapping[str, Any]) -> str:
    """As RobustBench writes it: ``8/255`` for linf, ``0.5`` for others."""
    levels = row["eps"] * 255
    whole = row["norm"] == "linf" and abs(levels - round(levels)) < 1e-4
    return f"{round(levels)}/255" if whole else f"{row['eps']:g}"


def _class(network: Any) -> str | None:
    return network["class_path"].rpartition(".")[2] if isinstance(network, Mapping) else None


def _footnote(run: Run, attack: Mapping[str, Any] | None) -> str:
    result = run.result
    version = result.get("versions", {}).get("lightning-advdef", "")
    said = [f"Judged by lightning-advdef {version} on {result['clean_accuracy']['images']} images."]
    if attack is not None:
        kind = attack["attack"]["init_args"].get("version", "standard")
        said.append(f"AutoAttack {kind} in {attack['norm']}.")
        said += [
            f"Worst case over all attacks that were run: {_percent(case['accuracy'])}."
            for case in result["worst_case"]
            if (case["norm"], case["eps"]) == (attack["norm"], attack["eps"])
        ]
    return " ".join(said)
