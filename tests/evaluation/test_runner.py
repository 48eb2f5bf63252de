"""Batches that do not fit in memory are attacked in groups."""

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import PGD, Cascade, FullGradient, Square
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.evaluation.judge import JudgeSettings
from lightning_advdef.evaluation.runner import ScenarioRunner
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.attacks.helpers import middle_images, random_linear

ATTACKS = {
    "pgd": PGD(0.05, steps=4),
    "cascade": Cascade(attacks={"pgd": PGD(0.05, steps=2), "square": Square(0.05, queries=6)}),
}


class Small(nn.Module):
    """Has memory for the gradients of so many images."""

    def __init__(self, room, error=torch.OutOfMemoryError):
        super().__init__()
        self.network, self.room, self.error, self.sizes = random_linear(4, 72), room, error, []

    def forward(self, images):
        if images.requires_grad:
            self.sizes.append(len(images))
            if len(images) > self.room:
                raise self.error("not enough memory: you tried to allocate 1 PiB")
        return self.network(images)


@pytest.fixture
def batch():
    images = middle_images(20, 2, 6, 6)
    with torch.no_grad():
        labels = random_linear(4, 72)(images).argmax(dim=1)
    return Batch(images, labels, torch.arange(20))


def rows_of(network, batch, attack, **settings):
    judge = Judge(network, [Scenario("a", attack)], JudgeSettings(**settings))
    return judge, judge(batch)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_without_memory_the_result_is_that_of_smaller_groups(batch, attack, error):
    judge, rows = rows_of(Small(6, error), batch, attack)
    _, whole = rows_of(Small(100), batch, attack)
    assert rows.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(rows[name], whole[name], rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
    assert judge.runners["a"].size == 5


def test_the_size_that_fits_is_remembered(batch):
    network = Small(6)
    judge, first = rows_of(network, batch, ATTACKS["pgd"])
    assert network.sizes[:3] == [20, 10, 5]
    network.sizes.clear()
    assert all(torch.equal(judge(batch)[name], first[name]) for name in first)
    assert max(network.sizes) == 5


def test_one_image_that_does_not_fit_is_an_error(batch):
    with pytest.raises(torch.OutOfMemoryError):
        rows_of(Small(0), batch, ATTACKS["pgd"])


def test_strict_mode_keeps_its_shape_and_says_that_it_does_not_fit(batch):
    network = Small(6)
    with pytest.raises(torch.OutOfMemoryError):
        rows_of(network, batch, ATTACKS["pgd"], batch_size=20, strict=True)
    assert network.sizes == [64]


def test_other_errors_are_not_taken_for_missing_memory(batch):
    class Broken(Small):
        def forward(self, images):
            if images.requires_grad:
                raise RuntimeError("a defect")
            return super().forward(images)

    with pytest.raises(RuntimeError, match="a defect"):
        rows_of(Broken(100), batch, ATTACKS["pgd"])


def test_images_that_are_not_attacked_come_back_clean_without_a_number(batch):
    runner = ScenarioRunner(Scenario("a", ATTACKS["cascade"]), FullGradient(random_linear(4, 72)))
    rows = torch.arange(20) < 8
    found = runner(batch, SampleRNG.for_images(batch.indices), rows, {})
    assert torch.equal(found.images[~rows], batch.images[~rows])
    assert not torch.equal(found.images[rows], batch.images[rows])
    assert found.columns["pgd/correct"][~rows].isnan().all()
    assert found.columns["forward"][~rows].sum() == 0
