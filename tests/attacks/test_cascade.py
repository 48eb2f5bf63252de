"""Survivors go on to the next part; the ledger says who broke what, and at which price."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import (
    APGD,
    BIM,
    FAB,
    FGM,
    FGSM,
    PGD,
    AutoAttack,
    Bisection,
    Cascade,
    DeepFool,
    FixedBudgetAttack,
    FullGradient,
    Square,
    Undefended,
)
from lightning_advdef.attacks.cascade import ROBUST, WRONG_BEFORE
from lightning_advdef.attacks.surrogates.plain import PlainNetwork
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import NeverFooled, Strict, make_network, right, seeded

calls = []


@dataclass(frozen=True)
class Planted(FixedBudgetAttack):
    """Darkens the first pixel of the images below a given number; the number of an image is its second pixel."""

    norms: ClassVar = ("linf",)

    below: int = 0
    name: str = ""

    def search(self, surrogate, images, goal, rng, ball):
        calls.append((self.name, numbers(images).tolist()))
        found = images.clone()
        found[:, 0, 0, 0] -= 0.2 * (numbers(images) < self.below)
        return found


def numbers(images):
    return (100 * images[:, 0, 0, 1]).round().to(torch.int64)


class Bright(nn.Module):
    """Class 0 where the first pixel is above 0.4."""

    def forward(self, images):
        score = images[:, 0, 0, 0] - 0.4
        return torch.stack([score, -score], dim=1)


def numbered_images(count=10):
    images = torch.full((count, 1, 1, 2), 0.5)
    images[:, 0, 0, 1] = torch.arange(count) / 100
    return images


def planted(*bounds, **options):
    attacks = {f"below{bound}": Planted(0.2, below=bound, name=f"below{bound}") for bound in bounds}
    return Cascade(attacks=attacks, **options)


def run(cascade, surrogate, images=None, labels=None):
    """Adversarial images and the ledger."""
    calls.clear()
    images = numbered_images() if images is None else images
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    surrogate.start_counting(len(images), images.device)
    return cascade(surrogate, images, labels), surrogate.ledger


# survivors


def test_each_part_gets_the_survivors_of_the_parts_before_it():
    found, ledger = run(planted(3, 2, 6), FullGradient(Bright()))
    assert calls == [("below3", [*range(10)]), ("below2", [*range(3, 10)]), ("below6", [*range(3, 10)])]
    assert ledger["broken_by"].tolist() == [0, 0, 0, 2, 2, 2, ROBUST, ROBUST, ROBUST, ROBUST]
    assert right(Bright(), found, torch.zeros(10, dtype=torch.int64)).tolist() == [False] * 6 + [True] * 4


def test_without_cascade_each_part_gets_all_images_that_were_right():
    labels = torch.zeros(10, dtype=torch.int64)
    labels[4] = 1
    _, ledger = run(planted(3, 6, cascade=False), FullGradient(Bright()), labels=labels)
    assert calls == [(name, [0, 1, 2, 3, 5, 6, 7, 8, 9]) for name in ("below3", "below6")]
    assert ledger["below6/correct"].nansum() == 4
    assert ledger["broken_by"].tolist() == [0, 0, 0, 1, WRONG_BEFORE, 1, ROBUST, ROBUST, ROBUST, ROBUST]


def test_images_that_are_wrong_already_are_left_as_they_are():
    labels = torch.ones(10, dtype=torch.int64)
    found, ledger = run(planted(3, 6), FullGradient(Bright()), labels=labels)
    assert calls == []
    assert torch.equal(found, numbered_images())
    assert (ledger["broken_by"] == WRONG_BEFORE).all()
    assert ledger["below3/correct"].isnan().all()


def test_no_images_give_empty_columns():
    found, ledger = run(planted(3), FullGradient(Bright()), numbered_images(0))
    assert len(found) == 0
    assert {name: len(column) for name, column in ledger.items()} == dict.fromkeys(
        ["broken_by", "below3/correct", "below3/forward", "below3/backward"], 0
    )


class Deaf(PlainNetwork):
    """Deployed it answers as the network; a gray-box attacker sees one that is always fooled, or never."""

    def __init__(self, shown):
        super().__init__(Bright())
        self.shown = nn.Linear(2, 2)
        with torch.no_grad():
            self.shown.weight.zero_()
            self.shown.bias.copy_(torch.tensor(shown))

    @property
    def undefended(self):
        return nn.Sequential(nn.Flatten(), self.shown)


@pytest.mark.parametrize("shown", [[1.0, 0.0], [0.0, 1.0]])
def test_survivors_are_decided_by_the_deployed_defense_and_not_by_the_surrogate(shown):
    found, ledger = run(planted(3, 6), Undefended(Deaf(shown)))
    assert [images for _, images in calls] == [[*range(10)], [*range(3, 10)]]
    assert ledger["broken_by"].tolist() == [0, 0, 0, 1, 1, 1, ROBUST, ROBUST, ROBUST, ROBUST]
    assert (found[:, 0, 0, 0] < 0.4).tolist() == [True] * 6 + [False] * 4


def test_a_fixed_shape_gives_the_same_ledger_and_images():
    free, strict = (run(planted(3, 6), make(Bright())) for make in (FullGradient, Strict))
    assert [images for _, images in calls] == [[*range(10)]] * 2
    assert torch.equal(free[0], strict[0])
    for name, column in free[1].items():
        assert torch.equal(column.nan_to_num(-5), strict[1][name].nan_to_num(-5)), name


class Suspicious(Bright):
    """Rejects dark images below a number, and very dark ones."""

    def __init__(self, below=0, black=0.0):
        super().__init__()
        self.below, self.black = below, black

    def rejects(self, images, rng):
        first = images[:, 0, 0, 0]
        return ((first < 0.4) & (numbers(images) < self.below)) | (first < self.black)


@pytest.mark.parametrize("make", [FullGradient, Strict])
def test_what_a_detector_rejects_goes_on_to_the_next_part(make):
    found, ledger = run(planted(3, 6), make(Suspicious(below=2)))
    if make is FullGradient:
        assert [images for _, images in calls] == [[*range(10)], [0, 1, *range(3, 10)]]
    assert ledger["broken_by"].tolist() == [ROBUST, ROBUST, 0, 1, 1, 1] + [ROBUST] * 4
    assert ledger["below3/correct"].tolist() == [0] * 3 + [1] * 7
    assert ledger["below3/correct_or_rejected"].tolist() == [1, 1, 0] + [1] * 7
    assert ledger["below6/correct_or_rejected"].nan_to_num(-1).tolist() == [1, 1, -1, 0, 0, 0] + [1] * 4
    assert right(Bright(), found, torch.zeros(10, dtype=torch.int64)).tolist() == [False] * 6 + [True] * 4


# parts that know no budget


@dataclass(frozen=True)
class Far(DeepFool):
    """Moves the first pixel as far as told, whatever it takes."""

    by: float = 0.0

    def perturb(self, surrogate, images, goal, rng):
        found = images.clone()
        found[:, 0, 0, 0] -= self.by
        return found


@pytest.mark.parametrize(("by", "counts"), [(0.15, True), (0.2, True), (0.25, False)])
def test_a_part_without_budget_counts_only_inside_it(by, counts):
    cascade = Cascade(attacks={"planted": Planted(0.2), "far": Far(by=by)})
    found, ledger = run(cascade, FullGradient(Bright()))
    assert (ledger["broken_by"] == (1 if counts else ROBUST)).all()
    assert torch.equal(found, numbered_images()) != counts


@pytest.mark.parametrize("order", [["planted", "far"], ["far", "planted"]])
def test_of_two_wrong_images_the_one_that_a_detector_accepts_is_kept(order):
    attacks = {"planted": Planted(0.2, below=10), "far": Far(by=0.15)}
    cascade = Cascade(attacks={name: attacks[name] for name in order}, cascade=False)
    found, ledger = run(cascade, FullGradient(Suspicious(black=0.32)))
    torch.testing.assert_close(found[:, 0, 0, 0], torch.full((10,), 0.35))
    assert (ledger["broken_by"] == order.index("far")).all()


def test_minimal_norm_parts_are_told_that_the_budget_is_enough():
    cascade = Cascade(attacks={"square": Square(0.1, queries=5), "fab": FAB("linf", steps=3)})
    assert cascade.parts()["fab"].enough == 0.1
    assert cascade.with_eps(0.05).parts()["fab"].enough == 0.05
    assert cascade.with_eps(0.05).eps == cascade.with_eps(0.05).attacks["square"].eps == 0.05


# what is refused


def test_a_cascade_takes_its_budget_from_its_parts():
    cascade = Cascade(attacks={"far": DeepFool(), "fgm": FGM("4/255", "l2")})
    assert (cascade.eps, cascade.norm) == (4 / 255, "l2")


@pytest.mark.parametrize(
    "attacks",
    [{"a": FGSM(0.1), "b": FGSM(0.2)}, {"a": FGSM(0.1), "b": FGSM(0.1, "l2")}, {"a": DeepFool()}, {}],
)
def test_other_than_one_budget_is_refused(attacks):
    with pytest.raises(ValueError, match="a cascade needs attacks with one budget"):
        Cascade(attacks=attacks)


@pytest.mark.parametrize("inner", [AutoAttack(0.1), Cascade(attacks={"a": FGSM(0.1)})])
def test_a_cascade_in_a_cascade_is_refused(inner):
    with pytest.raises(ValueError, match="inner is made of parts itself"):
        Cascade(attacks={"inner": inner})


@pytest.mark.parametrize("name", ["a/b", "clean", "broken_by"])
def test_names_that_would_spoil_the_columns_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a part"):
        Cascade(attacks={name: FGSM(0.1)})


@pytest.mark.parametrize("inner", [AutoAttack(0.1), Cascade(attacks={"a": FGSM(0.1)})])
def test_bisection_refuses_what_cannot_search_balls_of_several_radii(inner):
    with pytest.raises(ValueError, match="made of parts"):
        Bisection(inner)


def test_a_network_that_gives_nan_is_refused(images, labels):
    network = seeded(make_network).eval()
    with torch.no_grad():
        network[-1].bias[0] = torch.nan
    for attack in (Cascade(attacks={"fgsm": FGSM(0.1)}), Cascade(attacks={"square": Square(0.1, queries=2)})):
        with pytest.raises(RuntimeError, match="NaN"):
            attack(network, images, labels)


# passes


class Counting(nn.Module):
    """Counts the images that pass."""

    def __init__(self, network):
        super().__init__()
        self.network, self.rows = network, 0

    def forward(self, images):
        self.rows += len(images)
        return self.network(images)


SHORT = {
    "apgd": APGD(0.05, steps=3),
    "pgd": PGD(0.05, steps=2, restarts=2),
    "fab": FAB(steps=3),
    "square": Square(0.05, queries=8),
}


@pytest.mark.parametrize("make", [FullGradient, Strict])
@pytest.mark.parametrize("cascade", [True, False])
def test_passes_of_the_parts_and_of_the_clean_image_are_all_that_is_booked(network, images, labels, make, cascade):
    surrogate = make(network)
    passes = surrogate.start_counting(16, images.device)
    Cascade(attacks=SHORT, cascade=cascade)(surrogate, images, labels)
    for kind, clean in (("forward", 2), ("backward", 0)):
        parts = sum(surrogate.ledger[f"{name}/{kind}"] for name in SHORT)
        assert torch.equal(getattr(passes, kind), parts + clean)


def test_booked_passes_are_those_that_the_network_saw(network, images, labels):
    counting = Counting(network)
    surrogate = FullGradient(counting)
    passes = surrogate.start_counting(16, images.device)
    Cascade(attacks=SHORT)(surrogate, images, labels)
    assert passes.forward.sum() == counting.rows


def test_images_that_are_not_enlisted_cost_nothing_in_a_fixed_shape(network, images, labels):
    surrogate = Strict(network)
    passes = surrogate.start_counting(16, images.device)
    surrogate.enlisted = torch.arange(16) < 5
    Cascade(attacks=SHORT)(surrogate, images, labels)
    assert (passes.forward[:5] > 0).all()
    assert passes.forward[5:].sum() == 0


def test_the_price_of_a_cascade_is_what_an_image_that_is_never_fooled_costs(images):
    surrogate = FullGradient(NeverFooled(4))
    passes = surrogate.start_counting(16, images.device)
    # without Square, which spares itself the queries that change nothing
    cascade = Cascade(attacks={name: part for name, part in SHORT.items() if name != "square"})
    cascade(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert set(zip(passes.forward.tolist(), passes.backward.tolist(), strict=True)) == {cascade.cost(4)}


# earlier calls


def test_a_surrogate_may_be_used_for_one_batch_after_the_other():
    surrogate, fresh = FullGradient(Bright()), FullGradient(Bright())
    labels = torch.zeros(10, dtype=torch.int64)
    planted(3)(surrogate, numbered_images(4), labels[:4])
    assert torch.equal(planted(3)(surrogate, numbered_images(), labels), planted(3)(fresh, numbered_images(), labels))
    assert surrogate.ledger["broken_by"].tolist() == [0] * 3 + [ROBUST] * 7


def test_known_parts_are_not_run_again():
    surrogate = FullGradient(Bright())
    labels = torch.zeros(10, dtype=torch.int64)
    labels[1] = 1
    _, first = run(planted(3, 2), surrogate, labels=labels)
    surrogate.known = dict(first)
    passes = surrogate.start_counting(10, labels.device)
    calls.clear()
    planted(3, 2, 6)(surrogate, numbered_images(), labels)
    assert calls == [("below6", [*range(3, 10)])]
    assert passes.forward.tolist() == [0] * 3 + [1] * 7
    _, whole = run(planted(3, 2, 6), FullGradient(Bright()), labels=labels)
    assert all(torch.equal(whole[name].nan_to_num(-5), surrogate.ledger[name].nan_to_num(-5)) for name in whole)


def test_a_budget_of_zero_breaks_nothing_and_costs_the_clean_pass():
    labels = torch.zeros(10, dtype=torch.int64)
    labels[1] = 1
    surrogate = FullGradient(Bright())
    passes = surrogate.start_counting(10, labels.device)
    found = planted(3, 6).with_eps(0)(surrogate, numbered_images(), labels)
    assert torch.equal(found, numbered_images())
    assert surrogate.ledger["broken_by"].tolist() == [ROBUST, WRONG_BEFORE] + [ROBUST] * 8
    assert (passes.forward == 2).all()


# random defenses


class Coin(nn.Module):
    """Right on a given share of draws; darker images on fewer."""

    stochastic = True

    def adaptive_surrogates(self):
        return {}

    def forward(self, images, rng):
        score = images[:, 0, 0, 0] - rng.stream("coin").uniform(1).squeeze(1)
        return torch.stack([score, -score], dim=1)


def test_an_image_of_a_random_defense_survives_unless_no_draw_is_right():
    images = torch.full((60, 1, 1, 2), 0.5)
    images[:, 0, 0, 1] = torch.arange(60) / 100
    surrogate = FullGradient(Coin())
    _, ledger = run(planted(60, 61, draws=20), surrogate, images)
    # 0.3 of the draws are right: with 20 draws an image is broken with probability 0.0008
    assert (ledger["broken_by"] == ROBUST).sum() >= 58
    assert ledger["below60/correct"].nanmean() == pytest.approx(0.3, abs=0.06)
    assert surrogate.passes.forward.tolist() == [3 * 20] * 60


def test_of_a_random_defense_the_image_that_is_right_on_the_fewest_draws_is_kept():
    attacks = {"weak": replace(Planted(0.3), below=0), "strong": Planted(0.3, below=100)}
    found, ledger = run(Cascade(attacks=attacks, draws=200), FullGradient(Coin()), torch.full((20, 1, 1, 2), 0.7))
    assert (found[:, 0, 0, 0] < 0.6).all()
    assert (ledger["strong/correct"] < ledger["weak/correct"]).all()


def test_one_lucky_draw_of_a_random_defense_leaves_no_image_out_of_the_next_part():
    images = torch.full((40, 1, 1, 2), 0.5)
    run(planted(0, -1, draws=20), FullGradient(Coin()), images)
    assert [len(rows) for _, rows in calls] == [40, 40]


def test_a_random_defense_gives_the_same_ledger_for_every_split():
    images, rng = torch.full((12, 1, 1, 2), 0.3), SampleRNG.for_images(torch.arange(12))
    labels, cascade = torch.zeros(12, dtype=torch.int64), Cascade(attacks={"bim": BIM(0.2, steps=2)}, draws=3)
    columns = []
    for rows in (slice(0, 12), slice(0, 5), slice(5, 12)):
        surrogate = FullGradient(Coin())
        cascade(surrogate, images[rows], labels[rows], rng[rows].numbered())
        columns.append(surrogate.ledger["bim/correct"].nan_to_num(-5))
    assert torch.equal(columns[0], torch.cat(columns[1:]))


class Unsteady(nn.Module):
    """Right on about half of the draws from torch's own generator, and does not say so."""

    def forward(self, images):
        score = torch.rand(len(images), generator=GENERATOR) - 0.5
        return torch.stack([score, -score], dim=1)


GENERATOR = torch.Generator().manual_seed(0)


def test_a_network_that_does_not_say_that_it_is_random_loses_no_image_to_one_draw():
    surrogate = FullGradient(Unsteady())
    _, ledger = run(planted(0, 0), surrogate, torch.full((60, 1, 1, 2), 0.5))
    assert surrogate.random
    # with ten draws, an image is wrong on all of them with probability 0.001
    assert (ledger["broken_by"] == WRONG_BEFORE).sum() <= 2


@dataclass(frozen=True)
class Broken(FixedBudgetAttack):
    """Returns what no attack may return."""

    value: float = float("nan")

    def search(self, surrogate, images, goal, rng, ball):
        return images + self.value


@pytest.mark.parametrize("value", [float("nan"), 0.2])
def test_a_part_that_breaks_its_promises_is_an_error_and_not_a_robust_image(value):
    with pytest.raises(RuntimeError, match=r"not finite|left its budget"):
        Cascade(attacks={"broken": Broken(0.1, value=value)})(Bright(), numbered_images(), torch.zeros(10).long())


def test_a_norm_that_is_not_the_cascades_does_not_content_a_part():
    cascade = Cascade(attacks={"pgd": PGD(0.5, "l2"), "fab": FAB("linf"), "fab_l2": FAB("l2")})
    assert cascade.parts()["fab"].enough is None
    assert cascade.parts()["fab_l2"].enough == 0.5
