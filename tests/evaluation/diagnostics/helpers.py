"""Evaluations whose answers are made by hand."""

import torch
from torch import nn

from lightning_advdef.data import Digits
from lightning_advdef.evaluation import Judge
from lightning_advdef.evaluation.diagnostics.evidence import Evidence
from lightning_advdef.evaluation.rows import Rows

COUNT = 100


class Network(nn.Sequential):
    """Eight by eight pixels to ten classes."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


def right(count):
    """Which images are right: all but the last ones."""
    return (torch.arange(COUNT) < count).float()


def evidence(scenarios, correct=None, defense=None, stochastic=False, probes=None, **columns):
    """What the checks see.

    Args:
        scenarios: What was run.
        correct: How many images are right after each, or the column itself, by name; all where not given.
        defense: What was attacked.
        stochastic: Whether it was found to be random.
        probes: What extra passes found.
        columns: Further columns, by name.
    """
    judge = Judge(defense or Network(), scenarios)
    rows: Rows = {
        "label": torch.arange(COUNT) % 10,
        "clean/prediction": torch.arange(COUNT) % 10,
        "clean/correct": torch.ones(COUNT),
        "clean/stochastic": torch.full((COUNT,), int(stochastic)),
    }
    for scenario in judge.scenarios:
        found = (correct or {}).get(scenario.name, COUNT)
        rows[f"{scenario.name}/correct"] = right(found) if isinstance(found, int) else found
        rows[f"{scenario.name}/zero_gradients"] = torch.zeros(COUNT, dtype=torch.int64)
        rows[f"{scenario.name}/linf"] = torch.full((COUNT,), 0.1)
    described = [{"access": told["access"], "name": told["name"]} for told in judge.describe()]
    return Evidence(rows | columns, {"scenarios": described}, judge, probes)


def said(findings):
    """Status and scenario of each finding."""
    return [(finding.status, finding.scenario) for finding in findings]


def some_digits(count):
    """The first test images of the handwritten digits and their labels."""
    data = Digits(batch_size=count)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    return batch.images, batch.labels
