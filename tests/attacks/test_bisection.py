import pytest
import torch

from lightning_advdef.attacks import BIM, FGSM, PGD, Bisection, FullGradient, LowFrequency, Noise, Square, Targeted
from lightning_advdef.attacks.lp_ball import lp_norm
from tests.attacks.helpers import Recording, Strict, middle_images, random_linear, right
from tests.toys import Flat


@pytest.fixture
def linear():
    """Two classes, 40 images, the labels that the network gives, and half the difference of the weights."""
    network, grey = random_linear(2, 192, seed=2), middle_images(40, 3, 8, 8, spread=0.1)
    with torch.no_grad():
        logits = network(grey)
    return network, grey, logits.argmax(dim=1), (logits[:, 0] - logits[:, 1]).abs()


@pytest.mark.parametrize(("norm", "dual", "largest"), [("l2", 2, 2.0), ("linf", 1, 0.1)])
def test_on_a_linear_classifier_it_finds_the_distance_to_the_boundary(linear, norm, dual, largest):
    network, grey, labels, gaps = linear
    found = Bisection(BIM(largest, norm, steps=20), rounds=10)(network, grey, labels)
    distances = gaps / (network.weight[0] - network.weight[1]).detach().norm(p=dual)
    sizes = lp_norm(found - grey, norm)
    assert not right(network, found, labels).any()
    assert (sizes >= distances * (1 - 1e-4)).all()
    assert (sizes <= distances * 1.03 + largest / 2**10).all()


def test_more_rounds_are_never_farther(linear):
    network, grey, labels, _ = linear
    sizes = [
        lp_norm(Bisection(PGD(2.0, "l2", steps=10), rounds)(network, grey, labels) - grey, "l2") for rounds in (1, 3, 8)
    ]
    assert (sizes[1] <= sizes[0]).all()
    assert (sizes[2] <= sizes[1]).all()


@pytest.mark.parametrize("surrogate", [FullGradient, Strict])
def test_images_that_resist_the_largest_budget_keep_its_last_iterate(linear, surrogate):
    network, grey, labels, gaps = linear
    slope = (network.weight[0] - network.weight[1]).detach().abs().sum()
    largest = (gaps / slope).median().item()
    inner = FGSM(largest)
    found = Bisection(inner, rounds=6)(surrogate(network), grey, labels)
    resisting = right(network, inner(network, grey, labels), labels)
    assert 0 < resisting.sum() < 40
    assert torch.equal(right(network, found, labels), resisting)
    torch.testing.assert_close(found[resisting], inner(network, grey, labels)[resisting])
    assert (lp_norm(found - grey, "linf") <= largest + 1e-6).all()


def test_every_image_has_a_budget_of_its_own(linear):
    network, grey, labels, _ = linear
    attack = Bisection(BIM(2.0, "l2", steps=10), rounds=6)
    alone = torch.cat([attack(network, grey[row : row + 1], labels[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(
        lp_norm(alone - grey[:5], "l2"), lp_norm(attack(network, grey, labels)[:5] - grey[:5], "l2")
    )


@pytest.mark.parametrize("inner", [BIM(0.3, steps=5), PGD(0.3, steps=5), Square(0.3, queries=20)])
@pytest.mark.parametrize("make", [FullGradient, Strict])
def test_misclassified_images_need_one_look(network, images, labels, inner, make):
    surrogate = make(network)
    passes = surrogate.start_counting(16, images.device)
    found = Bisection(inner, rounds=5)(surrogate, images, labels)
    assert torch.equal(found[-3:], images[-3:])
    assert passes.forward[-3:].tolist() == [1] * 3
    assert not passes.backward[-3:].any()


def test_its_norm_is_that_of_the_inner_attack():
    assert Bisection(PGD(0.1)).size_norm == "linf"
    assert Bisection(PGD(0.1, "l2")).size_norm == "l2"


def test_it_costs_a_look_and_rounds_plus_one_runs_of_the_inner_attack_with_a_check_each(linear):
    network, grey, labels, _ = linear
    recording = Recording(network, exact=False)
    passes = recording.start_counting(40, grey.device)
    Bisection(BIM(0.1, steps=4), rounds=3)(recording, grey, labels)
    assert passes.forward.tolist() == [1 + 4 * (5 + 1)] * 40
    assert passes.backward.tolist() == [4 * 4] * 40


def test_images_that_resist_the_largest_budget_cost_one_run(linear):
    network, grey, labels, gaps = linear
    slope = (network.weight[0] - network.weight[1]).detach().abs().sum()
    resisting = gaps > gaps.median()
    for surrogate in (FullGradient(network), Strict(network)):
        passes = surrogate.start_counting(40, grey.device)
        Bisection(FGSM((gaps.median() / slope).item()), rounds=3)(surrogate, grey, labels)
        assert passes.forward[resisting].tolist() == [3] * 20
        assert passes.forward[gaps < gaps.median()].tolist() == [9] * 19


FIXED_STEP = PGD(0.1, step_size=0.01)


@pytest.mark.parametrize(
    ("inner", "rounds"),
    [(FGSM(0.1), 0), (FIXED_STEP, 8), (Targeted(FIXED_STEP), 8), (LowFrequency(Targeted(FIXED_STEP)), 8)],
)
def test_settings_that_do_not_bisect_are_refused(inner, rounds):
    with pytest.raises(ValueError, match="Bisection needs rounds >= 1 and an inner attack with step_size null"):
        Bisection(inner, rounds)


def test_it_needs_what_its_attack_needs_and_scores():
    assert [Bisection(attack).needs for attack in (PGD(0.1), Square(0.1), Noise(0.1))] == [
        "gradients",
        "scores",
        "scores",
    ]


def test_a_budget_beyond_the_pixel_box_is_refused(network, images, labels):
    with pytest.raises(ValueError, match="must lie in 0"):
        Bisection(PGD(1000.0, norm="l2", steps=2))(network, images, labels)


@pytest.mark.parametrize(("label", "eps"), [(0, 0.5), (1, 0.001)], ids=["wrong already", "resistant"])
def test_the_network_is_never_asked_about_no_images(label, eps):
    dark, labels = torch.full((3, 1, 4, 4), 0.3), torch.full((3,), label)
    found = Bisection(BIM(eps, steps=2), rounds=2)(Flat(), dark, labels)
    assert right(Flat(), found, labels).all() == bool(label)
