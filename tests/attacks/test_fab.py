import copy

import pytest
import torch

from lightning_advdef.attacks import FAB, FullGradient, TargetedFAB, Undefended
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.fab_walk import fab_step
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import Recording, Strict, make_network, middle_images, random_linear, right, seeded

NORMS = ["linf", "l2"]
BOTH = [FAB, TargetedFAB]


def boundary_distances(network, images, labels, norm):
    """Distance to the boundary with each other class, infinite for the label, shape (N, K); none may leave the box."""
    with torch.no_grad():
        logits, weight = network(images).double(), network.weight.double()
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = torch.linalg.vector_norm(weight[labels][:, None] - weight, ord=1 if norm == "linf" else 2, dim=2)
    return (gaps / slopes).scatter(1, labels[:, None], float("inf"))


def linear_problem(classes):
    network, grey = random_linear(classes, 192, seed=classes), middle_images(30, 3, 8, 8, spread=0.1)
    return network, grey, network(grey).argmax(dim=1)


# known answers


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_on_a_linear_classifier_it_finds_the_nearest_boundary(attack, norm, classes):
    network, grey, labels = linear_problem(classes)
    found = attack(norm, steps=30)(network, grey, labels)
    assert not right(network, found, labels).any()
    nearest = boundary_distances(network, grey, labels, norm).amin(dim=1)
    sizes = lp_norm((found - grey).double(), norm)
    # between the first step beyond the boundary, by 5%, and the boundary
    assert (sizes > nearest * (1 - 1e-4)).all()
    assert (sizes < nearest * 1.0501).all()
    assert (sizes / nearest).median() < 1.01


@pytest.mark.parametrize("norm", NORMS)
def test_with_target_labels_it_goes_to_the_targets_region(norm):
    network, grey, labels = linear_problem(4)
    for shift in (1, 2, 3):
        targets = (labels + shift) % 4
        found = TargetedFAB(norm, steps=60)(network, grey, labels, target_labels=targets)
        moved = lp_norm(found - grey, norm) > 0
        assert moved.float().mean() > 0.9
        assert torch.equal(network(found).argmax(dim=1)[moved], targets[moved])
        distances = boundary_distances(network, grey, labels, norm).gather(1, targets[:, None])[:, 0]
        assert (lp_norm((found - grey).double(), norm)[moved] > distances[moved] * (1 - 1e-4)).all()


def test_targets_are_tried_from_the_second_highest_logit_on():
    """With one target, the boundary that is found is that of the runner-up, be it the nearest or not."""
    network, grey, labels = linear_problem(10)
    runner_up = network(grey).topk(2, dim=1).indices[:, 1]
    distances = boundary_distances(network, grey, labels, "l2")
    sizes = lp_norm(TargetedFAB("l2", steps=30, targets=1)(network, grey, labels) - grey, "l2").double()
    second = distances.gather(1, runner_up[:, None])[:, 0]
    lone = second <= 1.02 * distances.amin(dim=1)
    assert (sizes[lone] < 1.06 * second[lone]).all()
    assert 0 < lone.sum() < 30
    all_sizes = lp_norm(TargetedFAB("l2", steps=30, targets=9)(network, grey, labels) - grey, "l2")
    assert (all_sizes <= sizes + 1e-6).all()
    assert (all_sizes < 0.98 * sizes).any()


def one_step_of_the_authors(norm, images, points, gaps, normals):
    projections = pytest.importorskip("pyautoattack.fab_projections")
    project = projections.projection_linf if norm == "linf" else projections.projection_l2
    flat, clean, normal = points.flatten(1), images.flatten(1), normals.flatten(1)
    height = (flat * normal).sum(dim=1) - gaps
    ahead, near = project(torch.cat([flat, clean]), normal.repeat(2, 1), height.repeat(2)).chunk(2)
    sizes = [lp_norm(move, norm).clamp_min(1e-8) for move in (ahead, near)]
    alpha = (sizes[0] / (sizes[0] + sizes[1])).clamp_max(0.1)[:, None]
    moved = (1 - alpha) * (flat + 1.05 * ahead) + alpha * (clean + 1.05 * near)
    return moved.clamp(0, 1).view_as(images)


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_is_that_of_the_authors_code(norm):
    generator = torch.Generator().manual_seed(0)
    images, points = (torch.rand(30, 3, 4, 5, generator=generator).double() for _ in range(2))
    normals = torch.randn(30, 3, 4, 5, generator=generator).double()
    gaps = 3 * torch.randn(30, generator=generator).double()
    points[:10] = images[:10]
    found = fab_step(images, points, gaps, normals, norm)
    expected = one_step_of_the_authors(norm, images, points, gaps, normals)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def authors_norms(network, images, labels, norm, targeted, steps=40):
    """Smallest norms that the authors' code finds, infinite where nothing was found."""
    peer = pytest.importorskip("pyautoattack.fab_pt")
    names = {"linf": "Linf", "l2": "L2"}
    attack = peer.FABAttack_PT(network, norm=names[norm], n_iter=steps, device="cpu")
    best = torch.full((len(images),), float("inf"))
    for rank in range(2, 5) if targeted else (0,):
        attack.target_class = rank
        with torch.no_grad():
            found = attack.attack_single_run(images, labels, is_targeted=targeted)
        fooled = ~right(network, found, labels)
        best = torch.minimum(best, torch.where(fooled, lp_norm(found - images, norm), float("inf")))
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", BOTH)
def test_norms_are_those_of_the_authors_code(attack, norm):
    network, images = seeded(make_network).eval(), middle_images(180, 2, 6, 6, spread=0.5)
    labels = network(images).argmax(dim=1)
    found = attack(norm, steps=40)(network, images, labels)
    sizes = torch.where(right(network, found, labels), float("inf"), lp_norm(found - images, norm))
    # their code fills the parameters' gradients
    expected = authors_norms(copy.deepcopy(network), images, labels, norm, attack is TargetedFAB)
    assert sizes.median().item() == pytest.approx(expected.median().item(), rel=0.01)
    for eps in expected[expected.isfinite()].quantile(torch.tensor([0.2, 0.4, 0.6, 0.8])):
        assert (sizes > eps).float().mean().item() == pytest.approx((expected > eps).float().mean().item(), abs=0.012)


# what is returned


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_images_wrong_already_come_back_as_they_are(attack, norm, network, images, labels):
    found = attack(norm, steps=5)(network, images, labels)
    assert torch.equal(found[-3:], images[-3:])


@pytest.mark.parametrize("attack", BOTH)
def test_images_never_fooled_come_back_as_they_are(attack, images):
    network = Stubborn()
    found = attack(steps=5)(network, images, torch.zeros(16, dtype=torch.int64))
    assert torch.equal(found, images)


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_all_others_are_misclassified(attack, norm, network, images, labels):
    found = attack(norm, steps=20)(network, images, labels)
    moved = lp_norm(found - images, norm) > 0
    assert not right(network, found, labels)[moved].any()
    assert moved.sum() > 10


@pytest.mark.parametrize("attack", BOTH)
def test_more_steps_never_give_a_larger_norm(attack, network, images, labels):
    sizes = []
    for steps in (3, 10, 30):
        found = attack("l2", steps=steps)(network, images, labels)
        sizes.append(torch.where(right(network, found, labels), float("inf"), lp_norm(found - images, "l2")))
    assert (sizes[1] <= sizes[0] * (1 + 1e-5)).all()
    assert (sizes[2] <= sizes[1] * (1 + 1e-5)).all()
    assert (sizes[2] < sizes[0]).any()


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_start_at_half_the_smallest_norm(norm):
    network, grey, labels = linear_problem(3)
    image, label = grey[:1], labels[:1]
    once, twice = Recording(network), Recording(network)
    found = FAB(norm, steps=3)(once, image, label)
    FAB(norm, steps=3, restarts=2)(twice, image, label)
    start = twice.seen[len(once.seen)]
    torch.testing.assert_close(lp_norm(start - image, norm), lp_norm(found - image, norm) / 2)
    assert not torch.allclose((start - image) * 2, found - image, atol=1e-3)


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_restarts_never_give_a_larger_norm(attack, norm, network, images, labels):
    one, two = (attack(norm, steps=3, restarts=restarts)(network, images, labels) for restarts in (1, 2))
    sizes = [lp_norm(found - images, norm) for found in (one, two)]
    assert (sizes[1] <= sizes[0] * (1 + 1e-5))[sizes[0] > 0].all()


# enough


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_enough_gives_the_same_verdicts_at_its_size_for_less(attack, norm, network, images, labels):
    searched = attack(norm, steps=20)(network, images, labels)
    right_before = right(network, images, labels)
    eps = lp_norm(searched - images, norm)[right_before].median().item()
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    content = attack(norm, steps=20).with_eps(eps * 1.001)(surrogate, images, labels)
    verdicts = [
        ~right(network, found, labels) & (lp_norm(found - images, norm) <= eps * 1.001) for found in (searched, content)
    ]
    assert torch.equal(*verdicts)
    broken = verdicts[1] & right_before
    assert 0 < broken.sum() < right_before.sum()
    assert (passes.forward[broken] < attack(norm, steps=20).cost(4).forward).any()
    assert passes.forward[broken].float().mean() < passes.forward[right_before & ~broken].float().mean() / 2


@pytest.mark.parametrize("norm", FAB.norms)
@pytest.mark.parametrize("attack", BOTH)
def test_images_that_another_network_gets_wrong_are_walked_too(attack, norm, network, images, labels):
    found = attack(norm, steps=20)(Undefended(network), images, labels)
    assert not right(network, found, labels)[-3:].any()
    assert (lp_norm(found - images, norm)[-3:] > 1e-3).all()


@pytest.mark.parametrize("attack", BOTH)
def test_a_wrong_answer_of_an_approximate_surrogate_ends_nothing(attack, network, images, labels):
    surrogate = Recording(network, exact=False)
    passes = surrogate.start_counting(16, images.device)
    attack(steps=6).with_eps(0.5)(surrogate, images, labels)
    assert (passes.forward >= attack(steps=6).cost(4).forward).all()


def test_a_budget_makes_it_content():
    assert FAB("l2", steps=7).with_eps("1/2") == FAB("l2", steps=7, enough=0.5)
    assert TargetedFAB(targets=3).with_eps(0.1) == TargetedFAB(targets=3, enough=0.1)


def test_a_budget_in_another_norm_says_nothing_about_what_is_enough():
    attack = FAB("l2", enough=0.3)
    assert attack.within("l2", 0.5) == FAB("l2", enough=0.5)
    assert attack.within("linf", 0.03) == attack


# passes


class Stubborn(torch.nn.Module):
    """Logits that depend on the image, with class 0 always the highest of five."""

    def forward(self, images):
        flat = images.flatten(1)
        wrong = torch.stack([flat.mean(dim=1), -flat.mean(dim=1), flat[:, 0], flat[:, 1]], dim=1).sigmoid()
        return torch.cat([2 + flat[:, :1], wrong], dim=1)


@pytest.mark.parametrize("make", [FullGradient, Strict])
@pytest.mark.parametrize(
    "attack", [FAB(steps=7), FAB("l2", steps=1, restarts=3), TargetedFAB(steps=5), TargetedFAB(steps=3, targets=2)]
)
def test_the_cost_is_what_an_image_pays_that_is_never_fooled(attack, make, images):
    surrogate = make(Stubborn())
    passes = surrogate.start_counting(16, images.device)
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    cost = attack.cost(5)
    assert passes.forward.tolist() == [cost.forward] * 16
    assert passes.backward.tolist() == [cost.backward] * 16


def test_the_usual_cost_is_half_of_the_authors_forward_passes():
    assert TargetedFAB().cost(10) == Cost(910, 900)
    assert TargetedFAB().cost(3) == Cost(203, 200)
    assert FAB().cost(10) == Cost(102, 900)


@pytest.mark.parametrize("attack", BOTH)
def test_forward_passes_are_counted_exactly(attack, network, images, labels):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    rows = []
    handle = network.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    attack(steps=15)(surrogate, images, labels)
    handle.remove()
    assert passes.forward.sum() == sum(rows)


@pytest.mark.parametrize("attack", [FAB(steps=12), TargetedFAB("l2", steps=12), TargetedFAB(steps=12, enough=0.05)])
def test_in_a_fixed_shape_an_image_pays_for_its_own_passes_alone(attack, network, images, labels):
    books = []
    for make in (FullGradient, Strict):
        surrogate = make(network)
        books.append(surrogate.start_counting(16, images.device))
        attack(surrogate, images, labels)
        assert surrogate.working is None
    assert books[0].forward.tolist() == books[1].forward.tolist()
    assert books[0].backward.tolist() == books[1].backward.tolist()


@pytest.mark.parametrize("attack", [FAB("l2", steps=10), TargetedFAB(steps=10, enough=0.05)])
def test_bounded_passes_change_nothing(attack, network, images, labels):
    bounded = Recording(network)
    bounded.max_rows = 5 * (3 if type(attack) is FAB else 1)
    whole = attack(network, images, labels)
    torch.testing.assert_close(attack(bounded, images, labels), whole, rtol=0, atol=1e-5)
    assert max(len(seen) for seen in bounded.seen[5:]) <= 5


# special cases


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_too_small_to_be_squared_lead_to_the_boundary(attack, norm):
    network, grey, labels = linear_problem(3)
    with torch.no_grad():
        network.weight.mul_(1e-25)
        network.bias.mul_(1e-25)
    found = attack(norm, steps=10)(network, grey, labels)
    nearest = boundary_distances(network, grey, labels, norm).amin(dim=1)
    assert (lp_norm((found - grey).double(), norm) < 1.06 * nearest).float().mean() > 0.9


@pytest.mark.parametrize("attack", BOTH)
def test_it_searches_in_float32_where_others_search_in_bfloat16(attack, network, images, labels):
    surrogate = FullGradient(network)
    surrogate.search_dtype = torch.bfloat16
    found = attack("l2", steps=10)(surrogate, images, labels)
    assert torch.equal(found, attack("l2", steps=10)(network, images, labels))
    assert surrogate.search_dtype == torch.bfloat16


def test_a_hundred_classes_and_images_that_are_not_square():
    network, images = random_linear(100, 3 * 4 * 6), middle_images(5, 3, 4, 6)
    labels = network(images).argmax(dim=1)
    for attack in (FAB(steps=5), TargetedFAB(steps=5)):
        assert not right(network, attack(network, images, labels), labels).any()


def test_restarts_are_an_images_own(network, images, labels):
    attack, rng = FAB("linf", steps=3, restarts=3), SampleRNG.for_images(torch.arange(16), seed=4)
    whole = attack(network, images, labels, rng)
    torch.testing.assert_close(attack(network, images[5:9], labels[5:9], rng[5:9]), whole[5:9])


# settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l1"}, "knows the norms linf, l2, got 'l1'"),
        ({"steps": 0}, "steps and restarts must be at least 1, got 0 and 1"),
        ({"restarts": 0}, "steps and restarts must be at least 1, got 100 and 0"),
        ({"alpha_max": 1.5}, "alpha_max in 0..1"),
        ({"eta": 0.9}, "eta of at least 1"),
        ({"beta": 1.0}, "beta between 0 and 1"),
        ({"enough": -1}, "enough must be a finite number of at least 0, got -1"),
    ],
)
@pytest.mark.parametrize("attack", BOTH)
def test_settings_are_checked(attack, settings, message):
    with pytest.raises(ValueError, match=message):
        attack(**settings)


def test_a_target_is_needed():
    with pytest.raises(ValueError, match="targets must be at least 1, got 0"):
        TargetedFAB(targets=0)


def test_the_untargeted_attack_takes_no_targets(network, images, labels):
    with pytest.raises(ValueError, match="FAB has no targeted variant"):
        FAB()(network, images, labels, target_labels=labels)


def test_its_constants_are_those_of_the_authors():
    attack = FAB()
    assert (attack.steps, attack.restarts, attack.alpha_max, attack.eta, attack.beta) == (100, 1, 0.1, 1.05, 0.9)
    assert TargetedFAB().targets == 9
