import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import DeepFool, FullGradient
from lightning_advdef.attacks.deepfool import OVERSHOOT, STABILISER, deepfool_step
from lightning_advdef.attacks.lp_ball import lp_norm
from tests.attacks.helpers import Linear, Strict, middle_images, random_linear, right


def boundary_distances(network, grey):
    """Distance to just beyond the boundary with each other class, infinite for the predicted one, shape (N, K)."""
    with torch.no_grad():
        logits = network(grey).double()
        predicted = logits.argmax(dim=1, keepdim=True)
        gaps = logits.gather(1, predicted) - logits + STABILISER
        weight = network.weight.double()
        lengths = (weight[predicted] - weight).norm(dim=2)
    return (gaps / lengths).scatter(1, predicted, float("inf"))


@pytest.fixture(params=[2, 3, 10], ids=lambda classes: f"{classes} classes")
def linear(request):
    return random_linear(request.param, 192, seed=request.param)


@pytest.fixture
def grey():
    """Images whose nearest boundary lies well inside the pixel box."""
    return middle_images(50, 3, 8, 8, spread=0.1)


LABELS = torch.zeros(50, dtype=torch.int64)


@pytest.mark.parametrize("candidates", [10, None])
def test_on_a_linear_classifier_it_goes_to_the_nearest_boundary_plus_the_overshoot(linear, grey, candidates):
    found = DeepFool(candidates=candidates)(linear, grey, LABELS)
    distances = boundary_distances(linear, grey).amin(dim=1)
    sizes = lp_norm((found - grey).double(), "l2")
    torch.testing.assert_close(sizes, 1.02 * distances, rtol=1e-3, atol=2e-7)


@pytest.mark.parametrize("overshoot", [0.0, 0.1, 0.5])
def test_overshoot_is_a_share_of_the_perturbation(grey, overshoot):
    network = random_linear(3, 192)
    found = DeepFool(overshoot=overshoot, steps=1)(network, grey, LABELS)
    expected = (1 + overshoot) * boundary_distances(network, grey).amin(dim=1)
    torch.testing.assert_close(lp_norm((found - grey).double(), "l2"), expected, rtol=1e-3, atol=0)


def test_the_prediction_changes_to_the_class_of_the_nearest_boundary(linear, grey):
    found = DeepFool()(linear, grey, LABELS)
    assert torch.equal(linear(found).argmax(dim=1), boundary_distances(linear, grey).argmin(dim=1))


def test_it_leaves_the_predicted_class_whatever_the_label(linear, grey):
    predicted = linear(grey).argmax(dim=1)
    found = [DeepFool()(linear, grey, labels) for labels in (predicted, LABELS, 1 - predicted.clamp(max=1))]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not right(linear, found[0], predicted).any()


def test_candidates_are_the_highest_logits(grey):
    network = random_linear(10, 192)
    with torch.no_grad():
        order = network(grey).argsort(dim=1, descending=True)
    distances = boundary_distances(network, grey)
    for candidates in (2, 4):
        sizes = lp_norm((DeepFool(candidates=candidates)(network, grey, LABELS) - grey).double(), "l2")
        among = distances.gather(1, order[:, 1:candidates]).amin(dim=1)
        torch.testing.assert_close(sizes, 1.02 * among, rtol=1e-3, atol=2e-7)
    assert (distances.gather(1, order[:, 1:2])[:, 0] > distances.amin(dim=1)).any()


def test_one_step_is_the_closed_form():
    """|gap| / length^2 times the normal, for the class where |gap| / length is smallest."""
    generator = torch.Generator().manual_seed(0)
    gaps, normals = torch.randn(4, 4, generator=generator), torch.randn(4, 4, 1, 3, 3, generator=generator)
    for image, step in enumerate(deepfool_step(gaps, normals)):
        candidates = []
        for other in range(4):
            gap, normal = gaps[image, other].abs() + STABILISER, normals[image, other]
            candidates.append((gap / normal.norm(), gap / normal.norm() ** 2 * normal))
        torch.testing.assert_close(step, min(candidates, key=lambda pair: pair[0])[1])


def test_a_step_on_the_boundary_still_crosses_it():
    step = deepfool_step(torch.zeros(1, 1), torch.ones(1, 1, 1, 1, 1))
    assert step.item() == pytest.approx(STABILISER)


def test_steps_without_a_slope_are_zero():
    assert not deepfool_step(torch.tensor([[-1.0]]), torch.zeros(1, 1, 3, 4, 4)).any()


def test_its_constants_are_those_of_the_authors():
    assert (STABILISER, OVERSHOOT, DeepFool().overshoot) == (1e-5, 0.02, 0.02)


def test_images_stop_when_their_prediction_changes(network, images, labels):
    """More steps change nothing for an image whose prediction has changed."""
    predicted = network(images).argmax(dim=1)
    few, many = DeepFool(steps=2)(network, images, labels), DeepFool(steps=20)(network, images, labels)
    done = ~right(network, few, predicted)
    assert done.any()
    assert torch.equal(few[done], many[done])
    assert not right(network, many, predicted).any()


def test_perturbations_are_far_smaller_than_random_ones_that_fool(network, images, labels):
    found = DeepFool()(network, images, labels)
    predicted = network(images).argmax(dim=1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    same_size = F.normalize(noise.flatten(1)).view_as(noise) * lp_norm(found - images, "l2").view(-1, 1, 1, 1)
    assert right(network, images + same_size, predicted).float().mean() > 0.8


def test_linear_classifiers_cost_two_forward_passes_and_a_backward_pass_per_other_class(grey):
    surrogate = FullGradient(random_linear(3, 192))
    passes = surrogate.start_counting(50, grey.device)
    DeepFool()(surrogate, grey, LABELS)
    assert passes.forward.tolist() == [2] * 50
    assert passes.backward.tolist() == [2] * 50


def test_passes_are_counted_exactly(network, images, labels):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    rows = []
    handle = network.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    DeepFool(steps=8, candidates=3)(surrogate, images, labels)
    handle.remove()
    assert passes.forward.sum() == sum(rows)
    steps = passes.forward // 2
    assert torch.equal(passes.backward, 2 * steps)
    assert len(steps.unique()) > 1


@pytest.mark.parametrize(("candidates", "backward"), [(3, 16), (10, 24), (None, 24)])
def test_an_image_that_is_never_fooled_costs_what_is_foretold(images, candidates, backward):
    surrogate, attack = FullGradient(Flat()), DeepFool(steps=8, candidates=candidates)
    passes = surrogate.start_counting(16, images.device)
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.forward.tolist() == [attack.cost(4).forward] * 16 == [16] * 16
    assert passes.backward.tolist() == [attack.cost(4).backward] * 16 == [backward] * 16


class Flat(torch.nn.Module):
    """Four logits that no pixel changes."""

    def forward(self, images):
        return images.flatten(1)[:, :4] * 0 + torch.arange(4.0)


def test_in_a_fixed_shape_an_image_pays_for_its_own_steps_alone(network, images, labels):
    compact, fixed = FullGradient(network), Strict(network)
    books = [surrogate.start_counting(16, images.device) for surrogate in (compact, fixed)]
    for surrogate in (compact, fixed):
        DeepFool(steps=8)(surrogate, images, labels)
    assert books[0].forward.tolist() == books[1].forward.tolist()
    assert books[0].backward.tolist() == books[1].backward.tolist()


def test_in_a_fixed_shape_images_that_are_done_move_no_further(network, images, labels):
    free, strict = (DeepFool(steps=8)(make(network), images, labels) for make in (FullGradient, Strict))
    torch.testing.assert_close(strict, free, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [FullGradient, Strict])
@pytest.mark.parametrize("candidates", [4, None])
def test_no_more_normals_are_held_than_rows_may_pass(network, images, labels, monkeypatch, make, candidates):
    held = []

    def watched(gaps, normals, images=None):
        held.append(normals.shape[0] * normals.shape[1])
        return deepfool_step(gaps, normals, images)

    monkeypatch.setattr("lightning_advdef.attacks.deepfool.deepfool_step", watched)
    free, bounded = make(network), make(network)
    bounded.max_rows = 7
    books = [surrogate.start_counting(16, images.device) for surrogate in (free, bounded)]
    attack = DeepFool(steps=8, candidates=candidates)
    expected = attack(free, images, labels)
    held.clear()
    torch.testing.assert_close(attack(bounded, images, labels), expected, rtol=0, atol=1e-5)
    assert max(held) <= 7
    assert len(set(held)) == 1 or make is FullGradient or candidates is None
    assert books[0].forward.tolist() == books[1].forward.tolist()
    assert books[0].backward.tolist() == books[1].backward.tolist()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"candidates": 1}, {"overshoot": -0.1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="DeepFool needs steps >= 1, candidates >= 2 or null and overshoot >= 0"):
        DeepFool(**wrong)


def test_pixels_at_a_bound_are_left_out_of_a_step_that_is_told_of_them():
    """Only pixels that would leave [0, 1] stay; the others make up for them."""
    pixels = torch.tensor([0.0, 1.0, 0.0, 0.5]).view(1, 1, 2, 2)
    normal = torch.tensor([-3.0, 3.0, 1.0, 2.0])
    step = deepfool_step(torch.tensor([[-1.0]]), normal.view(1, 1, 1, 2, 2), pixels)
    torch.testing.assert_close(step.flatten(), torch.tensor([0.0, 0.0, 1.0, 2.0]) / 5, rtol=1e-4, atol=1e-6)


def test_images_at_the_bounds_do_not_get_stuck():
    """The steep pixel cannot move, and the other one needs the whole way."""
    network = Linear(torch.tensor([[0.0, 0.0], [-20.0, 1.0]]), torch.tensor([0.0, -0.7]))
    image, label = torch.tensor([0.0, 0.2]).view(1, 1, 1, 2), torch.zeros(1, dtype=torch.int64)
    found = DeepFool()(network, image, label)
    assert not right(network, found, label).any()
    assert found.flatten()[0] == 0
    # a step that crosses the boundary, and what clipped steps gain before it
    assert 0.7 < found.flatten()[1] < 0.72
