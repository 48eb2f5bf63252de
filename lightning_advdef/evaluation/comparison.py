"""Two runs on the same images: who is right where, under each attack that both have met."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.rows import robust
from lightning_advdef.evaluation.run import Run
from lightning_advdef.evaluation.store import first_difference
from lightning_advdef.evaluation.worst import worst_within
from lightning_advdef.files import whole_file
from lightning_advdef.metrics import PairedDifference, paired_difference
from lightning_advdef.metrics.paired import wins

_DECIMALS = 6
_BY_LABELS = "nothing could be hashed: that both judged the same images rests on equal positions and labels"


@dataclass(frozen=True)
class Contest:
    """A quantity that two runs have of every image.

    Args:
        name: ``clean``, a scenario, or the worst of the common scenarios at a budget.
        access: What the attackers know, that of the first run before that of the second where they differ.
        indices: Positions of the images in their full split, shape ``(N,)``.
        first: Share of draws on which the first run is right, in [0, 1], shape ``(N,)``.
        second: The same of the second run.
    """

    name: str
    access: str
    indices: Tensor
    first: Tensor
    second: Tensor

    @cached_property
    def difference(self) -> PairedDifference:
        """Accuracy of the first run minus that of the second."""
        return paired_difference(self.first, self.second)

    @property
    def only_first(self) -> list[int]:
        """Indices of the images on which the first run alone is right, or right on more draws."""
        found: list[int] = self.indices[wins(self.first, self.second)].tolist()
        return found

    @property
    def only_second(self) -> list[int]:
        """The same of the second run."""
        found: list[int] = self.indices[wins(self.second, self.first)].tolist()
        return found


@dataclass(frozen=True)
class Comparison:
    """All that two runs can be compared by.

    Args:
        contests: Clean images, each scenario that both ran, and the worst case over these at each budget.
        notes: What cannot be compared or is not known to be the same, a sentence each.
    """

    contests: tuple[Contest, ...]
    notes: tuple[str, ...]


def compare(first: Run, second: Run) -> Comparison:
    """Sets two runs against each other, image by image.

    The worst case is over shared scenarios alone: whom more attacks were tried on would otherwise look weaker.

    Raises:
        ResultFolderError: If they judged different images.
    """
    require_same_images(first, second)
    indices = first.rows["index"]
    clean = Contest("clean", "", indices, first.rows["clean/correct"], second.rows["clean/correct"])
    contests, shared = [clean], []
    notes = [] if _hashed(first) else [_BY_LABELS]
    for name, one, other in _of_one_name(first, second):
        found = first_difference(_attack(one), _attack(other))
        if found:
            notes.append(f"{name} is left out, since it is another attack in {second.title} ({found})")
            continue
        shared.append(one)
        access = " | ".join(dict.fromkeys((one["access"], other["access"])))
        contests.append(Contest(name, access, indices, robust(first.rows, name), robust(second.rows, name)))
    return Comparison((*contests, *_worst_cases(first, second, shared)), (*notes, *_alone(first, second)))


def require_same_images(first: Run, second: Run) -> None:
    """Refuses runs that judged different images.

    Of images without a hash (a data set that cannot be indexed) positions, labels and class of the data are compared.

    Raises:
        ResultFolderError: If images, their number, order or labels differ, or are described in different ways.
    """
    counts = [len(run.rows["label"]) for run in (first, second)]
    paired = counts[0] == counts[1] and all(
        torch.equal(first.rows[column], second.rows[column]) for column in ("index", "label")
    )
    if not paired:
        raise ResultFolderError(
            f"{first.folder} and {second.folder} judged different images ({counts[0]} and {counts[1]}), so nothing can "
            "be paired: test both with the same --data and --data.limit"
        )
    if _images(first) != _images(second):
        raise ResultFolderError(
            f"{first.folder} and {second.folder} judged different images, or the same ones hashed in different ways "
            "(by pixels, by names of files, or by an earlier version), so nothing can be paired: test both with the "
            "same --data"
        )


def _images(run: Run) -> Any:
    """What tells the images of a run from others: their hash; of a data set that cannot be hashed, its class."""
    return _hashed(run) or {"class": _data(run).get("class")}


def _hashed(run: Run) -> Any:
    return _data(run).get("images")


def _data(run: Run) -> Mapping[str, Any]:
    data: Mapping[str, Any] = run.result.get("fingerprint", {}).get("data", {})
    return data


def _of_one_name(first: Run, second: Run) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    others = {scenario["name"]: scenario for scenario in second.result["scenarios"]}
    return [(one["name"], one, others[one["name"]]) for one in first.result["scenarios"] if one["name"] in others]


def _attack(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """What it was run through, such as a network that images are transferred from, may differ."""
    return {key: scenario.get(key) for key in ("norm", "eps", "attack")}


def _worst_cases(first: Run, second: Run, shared: Sequence[Mapping[str, Any]]) -> list[Contest]:
    # perturbations that leave the pixel range are no images
    boxed = [scenario for scenario in shared if scenario["attack"]["init_args"].get("box", True)]
    names = [scenario["name"] for scenario in boxed]
    stated = [{(case["norm"], case["eps"]) for case in run.result["worst_case"]} for run in (first, second)]
    return [
        Contest(
            f"worst of the common scenarios, {norm} {eps:.4g}",
            "all",
            first.rows["index"],
            worst_within(first.rows, names, norm, eps),
            worst_within(second.rows, names, norm, eps),
        )
        for norm, eps in sorted(stated[0] & stated[1])
        if names
    ]


def _alone(first: Run, second: Run) -> list[str]:
    notes = []
    for run, other in ((first, second), (second, first)):
        names = [scenario["name"] for scenario in run.result["scenarios"] if other.scenario(scenario["name"]) is None]
        if names:
            notes.append(f"only {run.title} ran {', '.join(names)}")
    return notes


def write_winners(comparison: Comparison, titles: Sequence[str], path: Path) -> None:
    """Writes a row per image: for each quantity how often both are right, in [0, 1], and who wins (``A``, ``B``).

    Args:
        comparison: Of two runs.
        titles: Their two names, for the heads of the columns.
        path: A ``.csv`` file.
    """
    contests = comparison.contests
    head = ["index"] + [f"{c.name}: {what}" for c in contests for what in (f"A {titles[0]}", f"B {titles[1]}", "wins")]
    with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        columns = [column for contest in contests for column in _columns(contest)]
        writer.writerows(zip(contests[0].indices.tolist(), *columns, strict=True))


def _columns(contest: Contest) -> tuple[list[float], list[float], list[str]]:
    first, second = (values.double().tolist() for values in (contest.first, contest.second))
    ahead = wins(contest.first, contest.second).int() - wins(contest.second, contest.first).int()
    winners = [("", "A", "B")[sign] for sign in ahead.tolist()]
    return [round(value, _DECIMALS) for value in first], [round(value, _DECIMALS) for value in second], winners
