"""What DDN and FMN have in common."""

import pytest
import torch

from lightning_advdef.attacks import BPDA, DDN, FMN, FullGradient, Undefended
from lightning_advdef.attacks.adaptive_radius import cosine_annealed
from lightning_advdef.attacks.lp_ball import lp_norm
from tests.attacks.helpers import Linear, Recording, Strict, make_network, middle_images, random_linear, right, seeded

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}
ATTACKS = [DDN(), *(FMN(norm=norm) for norm in FMN.norms)]


@pytest.fixture(params=ATTACKS, ids=lambda attack: f"{type(attack).__name__}-{attack.size_norm}")
def attack(request):
    return request.param


def predictions(network, images):
    with torch.no_grad():
        return network(images).argmax(dim=1)


def boundary_distances(network, images, norm):
    """Distance to the boundary with each other class, infinite for the predicted one, shape (N, K)."""
    with torch.no_grad():
        logits = network(images).double()
        predicted = logits.argmax(dim=1, keepdim=True)
        normals = network.weight.double() - network.weight.double()[predicted]
        lengths = torch.linalg.vector_norm(normals, DUAL[norm], dim=2)
        return ((logits.gather(1, predicted) - logits) / lengths).scatter(1, predicted, float("inf"))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_on_a_linear_classifier_it_finds_the_nearest_boundary(attack, classes):
    network, images = random_linear(classes, 192, seed=classes), middle_images(30, 3, 8, 8, spread=0.1)
    labels = predictions(network, images)
    found = attack(network, images, labels)
    assert not right(network, found, labels).any()
    distances = boundary_distances(network, images, attack.size_norm).amin(dim=1)
    ratio = lp_norm((found - images).double(), attack.size_norm) / distances
    assert ratio.min() > 1 - 1e-3
    # cross-entropy, which DDN ascends, pulls towards all other classes at once
    assert ratio.median() < (1.3 if isinstance(attack, DDN) and classes > 2 else 1.01)


def test_targets_are_reached_near_the_nearest_point_where_they_win(attack):
    network, images = random_linear(3, 192), middle_images(30, 3, 8, 8, spread=0.1)
    labels = predictions(network, images)
    targets = (labels + 1) % 3
    found = attack(network, images, labels, target_labels=targets)
    assert torch.equal(predictions(network, found), targets)
    distances = boundary_distances(network, images, attack.size_norm).gather(1, targets[:, None])[:, 0]
    assert (lp_norm((found - images).double(), attack.size_norm) / distances).median() < 1.1


def test_images_that_are_wrong_already_come_back_as_they_are(attack, network, images, labels):
    assert torch.equal(attack(network, images, labels)[-3:], images[-3:])


@pytest.mark.parametrize("fixed_shape", [False, True])
def test_images_that_another_network_gets_wrong_are_searched_too(attack, network, images, labels, fixed_shape):
    surrogate = Undefended(network)
    surrogate.fixed_shape = fixed_shape
    passes = surrogate.start_counting(16, images.device)
    found = attack(surrogate, images, labels)
    assert not right(network, found, labels)[-3:].any()
    assert (lp_norm(found - images, attack.size_norm)[-3:] > 0).all()
    assert passes.forward.tolist() == [101] * 16


def test_more_steps_come_nearer(attack, network, images, labels):
    few, many = (type(attack)(steps, **norm_of(attack))(network, images, labels) for steps in (15, 150))
    assert not right(network, few, labels).any()
    sizes = [lp_norm(found - images, attack.size_norm) for found in (few, many)]
    assert sizes[1].mean() < sizes[0].mean()


def norm_of(attack):
    return {"norm": attack.norm} if isinstance(attack, FMN) else {}


def test_images_that_cannot_be_fooled_come_back_unchanged(attack, images):
    never = Linear(torch.ones(2, 72) * 0.01, torch.tensor([10.0, 0.0]))
    assert torch.equal(attack(never, images, torch.zeros(16, dtype=torch.int64)), images)


@pytest.mark.parametrize("make", [FullGradient, Strict])
def test_an_image_that_is_never_fooled_costs_what_is_foretold(attack, images, make):
    surrogate = make(Linear(torch.randn(2, 72) * 0.01, torch.tensor([10.0, 0.0])))
    passes = surrogate.start_counting(16, images.device)
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.forward.tolist() == [attack.cost(2).forward] * 16 == [101] * 16
    assert passes.backward.tolist() == [attack.cost(2).backward] * 16 == [100] * 16


@pytest.mark.parametrize("make", [FullGradient, Strict])
def test_images_that_are_wrong_already_cost_one_gradient(attack, network, images, labels, make):
    surrogate = make(network)
    passes = surrogate.start_counting(16, images.device)
    attack(surrogate, images, labels)
    assert passes.forward.tolist() == [101] * 13 + [1] * 3
    assert passes.backward.tolist() == [100] * 13 + [1] * 3
    assert surrogate.working is None


def test_of_all_iterates_that_fool_the_nearest_is_returned(attack, network, images, labels):
    surrogate = Recording(network)
    found = attack(surrogate, images[:4], labels[:4])
    iterates = torch.stack(surrogate.seen)
    with torch.no_grad():
        fooled = network(iterates.flatten(0, 1)).argmax(dim=1).view(len(iterates), 4) != labels[:4]
    sizes = torch.stack([lp_norm(each - images[:4], attack.size_norm) for each in iterates])
    nearest = sizes.masked_fill(~fooled, float("inf")).argmin(dim=0)
    assert torch.equal(found, iterates[nearest, torch.arange(4)])


@pytest.mark.parametrize("kind", [FullGradient, BPDA])
def test_a_search_in_bfloat16_is_confirmed_in_float32(attack, kind, network, images, labels):
    surrogate = kind(network)
    surrogate.search_dtype = torch.bfloat16
    found = attack(surrogate, images, labels)
    moved = (found != images).flatten(1).any(dim=1)
    assert moved.sum() > 10
    assert not right(network, found, labels)[moved].any()


@pytest.mark.parametrize("shape", [(1, 8, 5), (3, 5, 8)])
def test_images_need_not_be_square_and_classes_may_be_many(attack, shape):
    network, images = random_linear(100, 40 * shape[0]), middle_images(5, *shape)
    labels = predictions(network, images)
    assert not right(network, attack(network, images, labels), labels).any()


def test_annealing_follows_half_a_cosine():
    assert [cosine_annealed(1.0, 0.0, step, 4) for step in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])


def test_constant_logits_move_nothing(attack, images):
    flat = Linear(torch.zeros(4, 72), torch.tensor([2.0, 1.0, 0.0, 0.0]))
    assert torch.equal(attack(flat, images, torch.zeros(16, dtype=torch.int64)), images)


@pytest.mark.parametrize("exported", [DDN, FMN])
@pytest.mark.parametrize("wrong", [{"steps": 0}, {"gamma": 0.0}, {"gamma": 1.0}])
def test_impossible_settings_are_refused(exported, wrong):
    with pytest.raises(ValueError, match="steps must be at least 1 and gamma between 0 and 1"):
        exported(**wrong)


def test_a_batch_norm_network_is_fooled_by_less_than_random_noise(attack):
    network, images = seeded(make_network).eval(), middle_images(16, 2, 6, 6)
    labels = predictions(network, images)
    found = attack(network, images, labels)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    size = lp_norm(found - images, attack.size_norm) / lp_norm(noise, attack.size_norm)
    assert right(network, images + size.view(-1, 1, 1, 1) * noise, labels).float().mean() > 0.8
