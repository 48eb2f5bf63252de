"""What a report says of each model; nothing here knows a file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_advdef.evaluation.diagnostics.lines import next_entries
from lightning_advdef.evaluation.lines import Line, comparison_lines
from lightning_advdef.evaluation.reporting.provenance import circumstances, configuration
from lightning_advdef.evaluation.rows import accuracy
from lightning_advdef.evaluation.run import Run
from lightning_advdef.evaluation.worst import worst_within
from lightning_advdef.types import DIFFERENTIATING, Norm

Accuracy = Mapping[str, Any]
Finding = Mapping[str, Any]

# what an attacker has who does not know, or does not reach, the part that defends: what papers often report
PAPER = ("gray", "transfer")
KNOWING = (*DIFFERENTIATING, "query")


class Contrast(NamedTuple):
    """What a model keeps at one budget, against two kinds of attackers.

    Attributes:
        norm: Of the budget.
        eps: The budget, in pixel units.
        paper: Accuracy under all scenarios together that do not reach the defending part; None if there is none.
        paper_names: Names of those of this budget.
        knowing: Accuracy under all scenarios together whose attacker knows the defense; None if there is none, or none
            of this budget takes queries or several gradients.
        knowing_names: Names of those of this budget.
        passes: Mean forward and backward passes per image of the latter, all together.
    """

    norm: Norm
    eps: float
    paper: Accuracy | None
    paper_names: tuple[str, ...]
    knowing: Accuracy | None
    knowing_names: tuple[str, ...]
    passes: float


@dataclass(frozen=True)
class Model:
    """A run as a report shows it.

    Args:
        run: Where it comes from.
        contrasts: Paper protocol beside strong attack, a budget each.
        findings: Diagnostics, those that are raised first.
        circumstances: Names and values of what the numbers rest on.
        configuration: Content of the training's ``config.yaml``; None where it is not in the folder.
    """

    run: Run
    contrasts: tuple[Contrast, ...]
    findings: tuple[Finding, ...]
    circumstances: tuple[tuple[str, str], ...]
    configuration: str | None

    @property
    def title(self) -> str:
        """Name in the report."""
        return self.run.title

    @property
    def raised(self) -> list[Finding]:
        """Diagnostics that speak."""
        return [finding for finding in self.findings if finding["status"] == "raised"]

    @property
    def next_scenarios(self) -> str:
        """What they ask for, as entries of ``evaluation.scenarios``."""
        return "\n".join(next_entries(self.findings))


@dataclass(frozen=True)
class Report:
    """Models side by side.

    Args:
        models: In the order of the command line.
        lines: The table that the terminal shows, too.
    """

    models: tuple[Model, ...]
    lines: tuple[Line, ...]


def read_report(runs: Sequence[Run]) -> Report:
    """All that is said of some runs.

    Raises:
        ResultFolderError: If a folder holds no finished evaluation.
    """
    seconds = {run.title: found for run in runs if (found := run.seconds_per_epoch()) is not None}
    lines = comparison_lines({run.title: run.result for run in runs}, seconds)
    return Report(tuple(map(_model, runs)), tuple(lines))


def _model(run: Run) -> Model:
    findings = sorted(run.result.get("diagnostics", []), key=lambda finding: finding["status"] != "raised")
    return Model(run, tuple(contrasts(run)), tuple(findings), tuple(circumstances(run)), configuration(run))


def contrasts(run: Run) -> list[Contrast]:
    """Paper protocol beside strong attack, for each budget that a scenario states."""
    return [_contrast(run, case["norm"], case["eps"]) for case in run.result["worst_case"]]


def _contrast(run: Run, norm: Norm, eps: float) -> Contrast:
    # perturbations that leave the pixel range are no images
    boxed = [s for s in run.result["scenarios"] if s["attack"]["init_args"].get("box", True)]
    paper, knowing = ([s for s in boxed if s["access"] in access] for access in (PAPER, KNOWING))
    of_budget = [[s for s in found if (s["norm"], s.get("eps")) == (norm, eps)] for found in (paper, knowing)]
    minimal = [s for s in knowing if s["norm"] == norm and "eps" not in s]
    if all(s.get("few_gradients", False) for s in (*of_budget[1], *minimal)):
        of_budget[1] = []  # a single step is no strong attack, whoever takes it
    accuracies = [
        _worst(run, found, norm, eps) if stated else None
        for found, stated in zip((paper, knowing), of_budget, strict=True)
    ]
    names = [tuple(s["name"] for s in stated) for stated in of_budget]
    passes = sum(s["passes"]["forward"] + s["passes"]["backward"] for s in of_budget[1])
    return Contrast(norm, eps, accuracies[0], names[0], accuracies[1], names[1], passes)


def _worst(run: Run, scenarios: Sequence[Mapping[str, Any]], norm: Norm, eps: float) -> Accuracy:
    return accuracy(worst_within(run.rows, [scenario["name"] for scenario in scenarios], norm, eps))
