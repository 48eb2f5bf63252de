"""The extra passes: on which images, how many, and independent of how the rest was run."""

import functools

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_advdef.attacks import FGSM, PGD, FullGradient, Square, Undefended
from lightning_advdef.data import Digits
from lightning_advdef.defenses import PurificationModule
from lightning_advdef.evaluation import Judge, Scenario, evaluate
from lightning_advdef.evaluation.diagnostics import probes
from lightning_advdef.evaluation.diagnostics.probes import (
    COMPARED,
    PROBED,
    affordable,
    chosen,
    pick,
    probe,
    probe_cost,
    sample,
)
from lightning_advdef.evaluation.summary import summarise
from lightning_advdef.models import MLP
from lightning_advdef.purifiers import BitDepth, Median
from lightning_advdef.types import Batch
from tests.conftest import result_of, scenario
from tests.evaluation.diagnostics.helpers import Network, some_digits
from tests.toys import foreign_loader

PROBES = {
    "gradient_not_finite",
    "gradient_uncorrelated",
    "huge_budget_survived",
    "noise_flips",
    "defense_costs_accuracy",
}
ATTACKS = [scenario("pgd", "PGD", eps=0.1, steps=4)]


class Counting(torch.nn.Module):
    """Always right about class 0, whatever is done to the image, and counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, images):
        self.asked += len(images)
        mean = images.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat([2 + 0 * mean, mean, -mean], dim=1)


def rows_of(batch):
    order = batch.indices.argsort()
    return {"index": batch.indices[order], "label": batch.labels[order]}


def test_rows_are_spread_evenly():
    assert chosen(5, 32).tolist() == [0, 1, 2, 3, 4]
    assert chosen(1001, 11).tolist() == list(range(0, 1001, 100))


@pytest.mark.parametrize("limit", [None, 50])
def test_images_are_read_again_by_their_index(limit):
    data = Digits(limit=limit)
    data.setup("test")
    loader = data.test_dataloader()
    batches = [Batch(*(tensor.clone() for tensor in batch)) for batch in loader]
    everything = Batch(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
    found = sample(loader, rows_of(everything))
    assert len(found.images) == min(COMPARED, len(everything.images))
    for tensor, expected in zip(found, pick(everything), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_images_of_a_foreign_loader_are_numbered_by_their_place():
    loader = foreign_loader(count=20)
    found = sample(loader, {"index": torch.arange(20), "label": torch.arange(20) % 10})
    torch.testing.assert_close(found.images, loader.dataset.tensors[0], rtol=0, atol=0)
    assert torch.equal(found.labels, loader.dataset.tensors[1])


def test_what_cannot_be_indexed_is_not_read_again():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    assert sample(DataLoader(Stream()), {"index": torch.arange(4)}) is None


@pytest.mark.parametrize(
    "made",
    [
        lambda data: DataLoader(data, sampler=[9, 8, 7, 6]),
        lambda data: DataLoader(data, batch_sampler=[[9, 8], [7, 6]]),
        lambda data: DataLoader(TensorDataset(*data.tensors, torch.arange(1000, 1020))),
        lambda data: DataLoader(TensorDataset(*data.tensors, torch.arange(20).flip(0))),
        lambda data: DataLoader(data, batch_size=None),
    ],
)
def test_images_that_their_index_does_not_tell_are_not_read_again(made):
    loader = made(foreign_loader().dataset)
    batches = [batch if len(batch) == 3 else (*batch, None) for batch in loader]
    labels = torch.cat([labels.flatten() for _, labels, _ in batches])
    index = torch.arange(len(labels)) if batches[0][2] is None else torch.cat([numbers for *_, numbers in batches])
    order = index.argsort()
    assert sample(loader, {"index": index[order], "label": labels[order]}) is None


def test_images_are_read_again_as_they_were_handed_to_the_judge():
    loader, rows = foreign_loader(), {"index": torch.arange(20), "label": torch.arange(20) % 10}
    found = sample(loader, rows, lambda batch: (batch[0] / 2, batch[1]))
    torch.testing.assert_close(found.images, loader.dataset.tensors[0] / 2, rtol=0, atol=0)
    assert sample(loader, rows, lambda batch: (batch[0], batch[1] + 1)) is None


class RootOfZero(Network):
    """Its gradient is no number."""

    def forward(self, images):
        return super().forward(images) + 0 * (images - images).sqrt().sum()


def test_a_gradient_that_is_no_number_does_not_end_an_evaluation_by_scores():
    suite = [Scenario("square", Square(0.1, queries=5))]
    found = {
        told["name"]: told["status"] for told in evaluate(RootOfZero(), *some_digits(8), suite).result["diagnostics"]
    }
    assert (found["gradient_not_finite"], found["huge_budget_survived"]) == ("raised", "unmeasured")


class NoNumberOffTheImages(Network):
    """NaN for whatever has no black corner, as all digits have."""

    darkest = 0.1

    def forward(self, images):
        grey = images[:, :, 0, 0] > self.darkest
        return super().forward(images).masked_fill(grey, torch.nan)


def test_no_number_on_the_way_of_the_huge_budget_does_not_end_an_evaluation():
    suite = [Scenario("pgd", PGD(0.01, steps=2))]
    found = {
        told["name"]: told["status"]
        for told in evaluate(NoNumberOffTheImages(), *some_digits(8), suite).result["diagnostics"]
    }
    assert (found["gradient_not_finite"], found["huge_budget_survived"]) == ("clear", "unmeasured")


class NoNumberBesideTheImages(NoNumberOffTheImages):
    """NaN even under small noise."""

    darkest = 0.02


def test_no_number_under_noise_counts_as_a_wrong_answer():
    network, images = NoNumberBesideTheImages(), some_digits(64)[0]
    told = evaluate(network, images, network(images).argmax(dim=1), [Scenario("pgd", PGD(0.01, steps=2))])
    flips = next(entry for entry in told.result["diagnostics"] if entry["name"] == "noise_flips")
    assert flips["measured"] > 0.1, "half of the corners become lighter"


def finding(name, module, images, labels):
    told = evaluate(module, images, labels, [Scenario("pgd", PGD(0.01, steps=20))]).result["diagnostics"]
    return next(entry for entry in told if entry["name"] == name)


class FlipsUnderNoise(Network):
    """Answers otherwise as soon as one pixel is no longer black."""

    def forward(self, images):
        return torch.where(images[:, :, 0, 0] > 0.01, super().forward(images).roll(1, dims=1), super().forward(images))


@pytest.mark.parametrize(("network", "expected"), [(FlipsUnderNoise, "raised"), (Network, "clear")])
def test_predictions_that_noise_turns_are_raised(network, expected):
    network, images = network(), some_digits(128)[0]
    assert finding("noise_flips", network, images, network(images).argmax(dim=1))["status"] == expected


@pytest.mark.parametrize(("purifier", "expected"), [(Median(7), "raised"), (BitDepth(8), "clear")])
def test_images_that_the_purifier_makes_wrong_are_raised(purifier, expected):
    defense, images = (
        PurificationModule(functools.partial(MLP, hidden=[8]), purifier, spec="digits"),
        some_digits(64)[0],
    )
    labels = defense.classifier(images).argmax(dim=1)
    told = finding("defense_costs_accuracy", defense, images, labels)
    assert told["status"] == expected
    if expected == "raised":  # what the price buys is what an attacker leaves who knows the defense
        (asked,) = yaml.safe_load(told["next"])
        assert asked["surrogate"] == "adaptive"


def test_passes_are_those_that_are_told():
    images, network = some_digits(64)[0], Counting()
    labels = torch.zeros(64, dtype=torch.int64)
    costs = []
    for diagnostics in (False, True):
        network.asked = 0
        evaluate(network, images, labels, [Scenario("pgd", PGD(0.1, steps=100))], diagnostics=diagnostics)
        costs.append(network.asked)
    bare = 64 + PROBED
    assert costs[1] - costs[0] == bare + PROBED * probe_cost(draws=1).forward


class Turned(nn.Module):
    """A classifier whose derivative by a picture points elsewhere."""

    def __init__(self):
        super().__init__()
        self.network = Network()

    def forward(self, images):
        return self.network(images.detach() + images.roll((3, 4), (2, 3)) - images.roll((3, 4), (2, 3)).detach())


@pytest.mark.parametrize(("make", "count", "expected"), [(Network, 60, 8), (Turned, 60, 32), (Turned, 8, 8)])
def test_where_one_of_few_images_holds_against_everything_more_are_looked_at(monkeypatch, make, count, expected):
    looks, look = [], probes._look_again
    monkeypatch.setattr(probes, "_look_again", lambda *given: looks.append(len(given[-1])) or look(*given))
    torch.manual_seed(0)
    network = make()
    images = some_digits(count)[0]
    labels = network(images).argmax(dim=1)
    batch = Batch(images, labels, torch.arange(count))
    judge = Judge(network, [Scenario("fgsm", FGSM(0.1))])
    rows = judge(batch)
    summary = summarise(rows, judge.scenarios, judge.describe())
    found = probe(judge, summary, rows, pick(batch))
    assert looks == sorted({8, expected})
    assert len(found.probed) == len(found.survived) == len(found.noisy) == expected
    assert bool(found.survived.any()) == (make is Turned)


@pytest.mark.parametrize(
    ("images", "steps", "surrogate", "expected"),
    [(1000, 20, FullGradient, 32), (50, 10, FullGradient, 8), (100, 20, FullGradient, 22), (100, 20, Undefended, 8)],
)
def test_probes_spend_at_most_a_quarter_of_the_evaluation_or_eight_images(images, steps, surrogate, expected):
    runners = Judge(Network(), [Scenario("pgd", PGD(0.1, steps=steps), surrogate)]).runners.values()
    assert affordable(runners, images, graded=1, classes=10, draws=1) == expected


def test_findings_depend_neither_on_the_batch_size_nor_on_an_interruption(advdef):
    whole, parts = (
        result_of(
            advdef.digits("test", f"--evaluation.batch_size={size}", scenarios=ATTACKS, name=f"b{size}", limit=40)
        )[0]
        for size in (64, 7)
    )
    for one, other in zip(whole["diagnostics"], parts["diagnostics"], strict=True):
        assert one["status"] == other["status"]
        assert one["measured"] == pytest.approx(other["measured"], abs=1e-4)


def test_probes_can_be_left_out(advdef):
    folder = advdef.digits("test", "--evaluation.diagnostics=false", scenarios=ATTACKS)
    found = {finding["name"]: finding["status"] for finding in result_of(folder)[0]["diagnostics"]}
    assert {name for name, status in found.items() if status == "unmeasured"} >= PROBES
    assert found["zero_gradients"] == "clear"
