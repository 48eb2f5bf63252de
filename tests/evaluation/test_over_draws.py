"""What the mean over draws of a random defense hides."""

import math

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import Noise
from lightning_advdef.evaluation import Scenario
from lightning_advdef.evaluation.judge import Judge, JudgeSettings
from lightning_advdef.evaluation.summary import summarise
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch


class Coin(nn.Module):
    """Right on dark images, wrong on white ones, and with a chance of one half on those between."""

    stochastic = True

    def adaptive_surrogates(self):
        return {}

    def forward(self, images, rng=None):
        rng = SampleRNG.default(images) if rng is None else rng
        brightness = images.flatten(1).mean(dim=1)
        tossed = torch.where(rng.stream("coin").uniform(1).squeeze(1) < 0.5, 1.0, -1.0)
        score = torch.where(brightness < 0.3, 1.0, torch.where(brightness > 0.7, -1.0, tossed))
        return torch.stack([score, -score], dim=1)


def summary_of(images, draws):
    judge = Judge(Coin(), [Scenario("noise", Noise(0.0))], JudgeSettings(draws=draws))
    count = len(images)
    rows = judge(Batch(images, torch.zeros(count, dtype=torch.int64), torch.arange(count)))
    return rows, summarise(rows, judge.scenarios, judge.describe(), draws)


def test_an_image_that_is_wrong_on_one_draw_is_not_right_on_every_draw():
    images = torch.cat([torch.zeros(40, 1, 2, 2), torch.full((50, 1, 2, 2), 0.5), torch.ones(10, 1, 2, 2)])
    _, summary = summary_of(images, draws=20)
    assert summary["every_draw"]["value"] == pytest.approx(0.4)
    assert summary["clean_accuracy"]["value"] == pytest.approx(0.65, abs=0.05)
    assert summary["scenarios"][0]["every_draw"]["value"] == pytest.approx(0.4)


def test_deviation_of_one_draw_is_that_of_independent_coins():
    images = torch.full((400, 1, 2, 2), 0.5)
    rows, summary = summary_of(images, draws=4)
    assert summary["draw_deviation"] == pytest.approx(math.sqrt(0.25 / 400), rel=0.1)
    shares = rows["clean/correct"].double()
    unbiased = (shares * (1 - shares) * 4 / 3).sum().sqrt() / 400
    assert summary["draw_deviation"] == pytest.approx(float(unbiased))


def test_of_one_draw_nothing_is_said():
    _, summary = summary_of(torch.full((4, 1, 2, 2), 0.5), draws=1)
    assert "every_draw" not in summary
    assert "draw_deviation" not in summary["scenarios"][0]
