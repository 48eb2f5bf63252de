"""What a measurement counts and how it judges."""

import pytest
import torch

from benchmarks.attacks.cases import Setting
from benchmarks.attacks.measure import count_passes, judge, measure
from benchmarks.attacks.networks import Known, Target
from benchmarks.attacks.passes import CountedNetwork
from benchmarks.attacks.rounds import Plan, run_case
from lightning_advdef.types import Batch
from tests.attacks.helpers import Linear, make_network, middle_images, right, seeded

SHAPE = (2, 6, 6)


@pytest.fixture
def network():
    return seeded(make_network).eval()


@pytest.fixture
def batch(network):
    images = middle_images(12, *SHAPE)
    labels = network(images).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 4
    return Batch(images, labels, torch.arange(12))


def setting(attack="PGD", norm="linf", eps=0.1, steps=5):
    return Setting(attack, norm, eps, steps, 4, SHAPE, 0, "cpu")


def test_passes_of_a_peer_are_counted_where_gradients_come_back(network):
    counted = CountedNetwork(network)
    images = middle_images(5, *SHAPE).requires_grad_()
    torch.autograd.grad(counted(images).sum(), images)
    with torch.no_grad():
        counted(images)
    assert (counted.forwards, counted.backwards) == (10, 5)


def test_wrong_images_are_not_robust_and_results_outside_the_budget_break_nothing():
    network = Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2))
    images = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6]]).view(3, 1, 1, 2)
    found = torch.tensor([[0.45, 0.55], [0.1, 0.9], [0.4, 0.6]]).view(3, 1, 1, 2)
    batch = Batch(images, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    judged = judge(network, batch, found, setting(eps=0.2))
    assert judged.robust.tolist() == [False, True, False]
    assert judged.outside == 1
    minimal = judge(network, batch, found, setting("FMN"))
    assert minimal.sizes.tolist() == pytest.approx([0.15, 0.5, 0.0])


def test_an_image_that_is_not_fooled_or_leaves_the_pixel_range_has_infinite_size():
    network = Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2))
    images = torch.tensor([[0.6, 0.4], [0.9, 0.8]]).view(2, 1, 1, 2)
    found = torch.tensor([[0.6, 0.5], [0.9, 1.1]]).view(2, 1, 1, 2)
    batch = Batch(images, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert judge(network, batch, found, setting("FMN")).sizes.isinf().all()


@pytest.mark.parametrize("attack", ["PGD", "APGD"])
def test_passes_needed_are_those_of_an_attack_that_lets_broken_images_go(network, batch, attack):
    counted = count_passes("ours", network, batch, setting(attack, steps=50), size=5)
    assert counted["needed"] <= counted["forward"] + counted["backward"] + 0.5 <= 1.05 * counted["needed"] + 0.5
    robust = measure("ours", network, batch, setting(attack, steps=50), size=5)["verdict"].count("1")
    assert robust < right(network, batch.images, batch.labels).sum()


def test_ours_and_a_peer_spend_the_same_on_images_that_nothing_breaks(network, batch):
    pytest.importorskip("foolbox")
    peer = measure("foolbox", network, batch, setting(eps=1e-6), size=12)
    ours = count_passes("ours", network, batch, setting(eps=1e-6), size=12)
    # the first image is wrong from the start, and only ours lets it go
    assert ours["forward"] == (11 * peer["forward"] + 1) / 12
    assert ours["backward"] == (11 * peer["backward"] + 1) / 12


def test_a_library_that_fails_gives_one_row(network, batch, monkeypatch):
    monkeypatch.setattr("benchmarks.attacks.measure._peer", lambda *_: 1 / 0)
    target = Target("x", Known("digits", False, {"linf": 0.1}), network, batch)
    monkeypatch.setattr("benchmarks.attacks.rounds.lacks", lambda *_: False)
    records = list(run_case(target, "BIM", "linf", Plan(["ours", "art"], images=12, steps_divided_by=20)))
    assert [record.library for record in records if record.failed] == ["art"]
    assert [record.library for record in records if not record.failed] == ["ours"] * 3
    assert "ZeroDivisionError" in next(record.failed for record in records if record.failed)


@pytest.mark.parametrize("library", ["pyautoattack", "foolbox"])
@pytest.mark.parametrize("attack", ["PGD", "APGD", "Square"])
def test_a_peer_runs_under_our_names(network, batch, library, attack):
    peer = pytest.importorskip(f"benchmarks.attacks.peers.{library}")
    made = peer.make(network, setting(attack, steps=10))
    if (library == "foolbox") != (attack == "PGD"):
        assert made is None
        return
    spent = measure(library, network, batch, setting(attack, steps=10), size=12)
    assert spent["outside"] == 0
    assert spent["forward"] > 2
