import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import FGM, FGSM, FullGradient, RandomStartFGSM
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import Linear, middle_images, random_linear, right


@pytest.fixture
def binary():
    """A linear classifier of two classes with 400 images, and each image's signed score difference."""
    network, grey = random_linear(2, 48, seed=1), middle_images(400, 3, 4, 4)
    labels = torch.arange(400) % 2
    with torch.no_grad():
        logits = network(grey)
    return network, grey, labels, logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]


@pytest.mark.parametrize("eps", [0.005, 0.01, 0.02, 0.04])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_two_linear_classes_resist_where_the_margin_exceeds_eps_times_the_dual_norm(binary, eps, norm, dual):
    network, grey, labels, margins = binary
    eps = eps if norm == "linf" else 6 * eps
    slope = (network.weight[0] - network.weight[1]).norm(p=dual).item()
    robust = right(network, FGSM(eps, norm)(network, grey, labels), labels)
    assert torch.equal(robust, margins > eps * slope)
    assert 0 < robust.sum() < 200


@pytest.mark.parametrize("eps", [0.01, 0.02, 0.04])
def test_many_linear_classes_resist_where_all_margins_exceed_eps_times_the_dual_norm(eps):
    """Each class owns pixels of its own, so that one sign step is the worst case for all wrong classes at once."""
    weight = torch.zeros(4, 48)
    for number in range(4):
        weight[number, number::4] = torch.linspace(0.5, 1.5, 12).roll(number)
    network, grey = Linear(weight, torch.zeros(4)), middle_images(400, 3, 4, 4)
    with torch.no_grad():
        logits = network(grey)
    labels = logits.argmax(dim=1)
    wrong = logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)
    margins = logits.gather(1, labels[:, None])[:, 0] - wrong
    robust = right(network, FGSM(eps)(network, grey, labels), labels)
    assert torch.equal(robust, margins > eps * 24)
    assert 0 < robust.sum() < 400


def test_fgsm_is_the_image_plus_eps_times_the_sign_of_the_gradient(network, images, labels):
    leaf = images.clone().requires_grad_()
    F.cross_entropy(network(leaf), labels, reduction="sum").backward()
    assert torch.equal(FGSM(0.03)(network, images, labels), (images + 0.03 * leaf.grad.sign()).clamp(0, 1))
    network.zero_grad()


def test_fgm_moves_by_eps_along_the_gradient():
    network, grey = random_linear(3, 48), middle_images(20, 3, 4, 4)
    labels = torch.arange(20) % 3
    moved = FGM(0.4)(network, grey, labels) - grey
    leaf = grey.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(leaf), labels, reduction="sum"), leaf)
    torch.testing.assert_close(lp_norm(moved, "l2"), torch.full((20,), 0.4))
    cosine = F.cosine_similarity(moved.flatten(1), gradient.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(20))


def test_fgm_of_a_saturated_network_still_moves_by_eps():
    """The gradient of the cross-entropy underflows when squared long before it vanishes."""
    network, grey = random_linear(2, 48), middle_images(20, 3, 4, 4)
    with torch.no_grad():
        labels = network(grey).argmax(dim=1)
        scale = 60 / (network(grey)[:, 0] - network(grey)[:, 1]).abs().max()
        network.weight *= scale
        network.bias *= scale
    moved = FGM(0.4)(network, grey, labels) - grey
    slope = network.weight[0] - network.weight[1]
    cosine = F.cosine_similarity(moved.flatten(1), slope.expand(20, -1)).abs()
    torch.testing.assert_close(cosine, torch.ones(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(lp_norm(moved, "l2"), torch.full((20,), 0.4))


def test_fgm_is_fgsm_with_the_l2_norm(network, images, labels):
    assert torch.equal(FGM(0.3)(network, images, labels), FGSM(0.3, "l2")(network, images, labels))


def test_random_start_fgsm_steps_from_a_random_point_and_is_projected_back(network, images, labels):
    attack = RandomStartFGSM(0.03)
    rng = SampleRNG.default(images).stream("attack").stream("start")
    start = (images + rng.uniform(*images.shape[1:], low=-0.03, high=0.03)).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(start), labels, reduction="sum"), start)
    moved = (start.detach() - images + 1.25 * 0.03 * gradient.sign()).clamp(-0.03, 0.03)
    torch.testing.assert_close(attack(network, images, labels), (images + moved).clamp(0, 1))


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match=r"step_size must be above 0, got -0\.1"):
        RandomStartFGSM(0.1, step_size=-0.1)


@pytest.mark.parametrize("attack", [FGSM(0.03), RandomStartFGSM(0.03)])
def test_it_costs_one_forward_and_one_backward_pass(network, images, labels, attack):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    attack(surrogate, images, labels)
    assert passes.forward.tolist() == passes.backward.tolist() == [1] * 16
