import pytest
import torch

from lightning_advdef.attacks import CarliniWagnerLinf, FullGradient
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import margin
from tests.attacks.helpers import Linear, Recording, Strict, middle_images, random_linear, right

STRONG = {"steps": 20, "learning_rate": 0.2}  # reaches the ends of the ball


@pytest.mark.parametrize("eps", [0.005, 0.01, 0.02])
def test_two_linear_classes_resist_where_the_margin_exceeds_eps_times_the_l1_norm(eps):
    network, grey, labels = random_linear(2, 48, seed=1), middle_images(400, 3, 4, 4), torch.arange(400) % 2
    slope = (network.weight[0] - network.weight[1]).detach()
    with torch.no_grad():
        margins = -margin(network(grey), Goal(labels))
    robust = right(network, CarliniWagnerLinf(eps, **STRONG)(network, grey, labels), labels)
    assert torch.equal(robust, margins > eps * slope.abs().sum())
    assert 0 < robust.sum() < 200


def test_steps_follow_the_formula_with_torchs_adam(network, images, labels):
    """Adam over w, with pixels = middle + half tanh(w) / 0.9 between the bounds of ball and pixel range."""
    eps = 0.1
    recording = Recording(network, exact=False)
    CarliniWagnerLinf(eps, steps=5, confidence=100.0)(recording, images, labels)
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    middle, half = (low + high) / 2, (high - low) / 2
    variables = (0.9 * (images - middle) / half).atanh().requires_grad_()
    adam = torch.optim.Adam([variables], lr=0.03)
    assert len(recording.seen) == 6
    for seen in recording.seen:
        iterates = middle + half * variables.tanh() / 0.9
        inside = (iterates > low + 1e-3) & (iterates < high - 1e-3)
        torch.testing.assert_close(seen[inside], iterates[inside].detach(), atol=2e-4, rtol=0)
        adam.zero_grad()
        (-margin(network(iterates), Goal(labels)).sum()).backward()
        adam.step()
        assert inside.float().mean() > 0.7


def test_iterates_stay_in_the_ball_and_the_pixel_range(network, images, labels):
    images = (images * 2 - 0.5).clamp(0, 1)
    recording = Recording(network, exact=False)
    CarliniWagnerLinf(0.05, steps=10, learning_rate=2.0)(recording, images, labels)
    seen = torch.stack(recording.seen)
    assert (seen - images).abs().max() <= 0.05 + 1e-6
    assert seen.min() >= -1e-6
    assert seen.max() <= 1 + 1e-6


def test_the_defaults_use_three_fifths_of_the_ball():
    network, grey = random_linear(2, 48), torch.full((4, 3, 4, 4), 0.5)
    recording = Recording(network, exact=False)
    CarliniWagnerLinf(0.1, confidence=1e3)(recording, grey, torch.zeros(4, dtype=torch.int64))
    assert ((recording.seen[-1] - grey).abs() / 0.1).amax().item() == pytest.approx(0.6, abs=0.02)


def test_misclassified_images_come_back_as_they_are_for_one_gradient(network, images, labels):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    found = CarliniWagnerLinf(0.05)(surrogate, images, labels)
    assert torch.equal(found[-3:], images[-3:])
    assert passes.forward.tolist()[-3:] == passes.backward.tolist()[-3:] == [1, 1, 1]


def test_of_a_surrogate_that_decides_nothing_the_highest_margin_is_returned(network, images, labels):
    recording = Recording(network, exact=False)
    found = CarliniWagnerLinf(0.1, **STRONG)(recording, images, labels)
    with torch.no_grad():
        margins = torch.stack([margin(network(seen), Goal(labels)) for seen in recording.seen])
    assert torch.equal(found, torch.stack(recording.seen)[margins.argmax(dim=0), torch.arange(16)])


def test_confidence_raises_the_margin_further(network, images, labels):
    margins = []
    for confidence in (0.0, 50.0):
        found = CarliniWagnerLinf(0.1, **STRONG, confidence=confidence)(Recording(network, False), images, labels)
        margins.append(margin(network(found), Goal(labels)).mean())
    assert margins[1] > margins[0] + 0.1


def test_leaving_the_batch_does_not_change_the_way_of_the_others(network, images, labels):
    attack = CarliniWagnerLinf(0.03, **STRONG)
    free, strict = (attack(make(network), images, labels) for make in (FullGradient, Strict))
    torch.testing.assert_close(free, strict)
    assert 0 < right(network, free, labels).sum() < 13


def test_targets_are_reached_on_a_linear_network():
    network, images = random_linear(4, 48), torch.full((4, 3, 4, 4), 0.5)
    labels, targets = torch.zeros(4, dtype=torch.int64), torch.tensor([1, 2, 3, 1])
    found = CarliniWagnerLinf(0.3, **STRONG)(network, images, labels, target_labels=targets)
    assert torch.equal(network(found).argmax(dim=1), targets)


@pytest.mark.parametrize("steps", [1, 7])
def test_images_that_are_never_fooled_cost_what_is_announced(images, steps):
    surrogate = FullGradient(Linear(torch.full((2, 72), 1e-3), torch.tensor([9.0, 0.0])))
    passes = surrogate.start_counting(16, images.device)
    attack = CarliniWagnerLinf(0.1, steps=steps)
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.forward.tolist() == [attack.cost(2).forward] * 16 == [steps + 1] * 16
    assert passes.backward.tolist() == [attack.cost(2).backward] * 16 == [steps] * 16


def test_a_search_in_bfloat16_fools_in_float32(network, images, labels):
    surrogate = FullGradient(network)
    surrogate.search_dtype = torch.bfloat16
    found = CarliniWagnerLinf(0.1, **STRONG)(surrogate, images, labels)
    assert right(network, found, labels).sum() < 8


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"confidence": -1.0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"steps >= 1, learning_rate > 0 and confidence >= 0, got"):
        CarliniWagnerLinf(0.1, **wrong)


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="knows the norms linf, got 'l2'"):
        CarliniWagnerLinf(0.1, "l2")
