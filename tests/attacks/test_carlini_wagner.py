import pytest
import torch
from torch import nn

from lightning_advdef.attacks import CarliniWagnerL2, FullGradient, Undefended
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import margin
from lightning_advdef.attacks.lp_ball import lp_norm
from tests.attacks.helpers import Linear, Recording, Strict, middle_images, random_linear, right, seeded

# known answers


def linear_distances(network, images, labels):
    """Distance to the nearest boundary, where no pixel meets an end of its range."""
    with torch.no_grad():
        logits = network(images)
        gaps = logits.gather(1, labels[:, None]) - logits
        lengths = (network.weight[labels][:, None] - network.weight).norm(dim=2)
        return (gaps / lengths).scatter(1, labels[:, None], float("inf")).amin(dim=1)


@pytest.fixture(scope="module")
def plane():
    """A linear network and 20 images near grey, with the predicted classes."""
    network, images = random_linear(3, 48, seed=3), middle_images(20, 3, 4, 4)
    with torch.no_grad():
        return network, images, network(images).argmax(dim=1)


def test_a_linear_network_is_left_by_the_shortest_way(plane):
    network, images, labels = plane
    found = CarliniWagnerL2(steps=300)(network, images, labels)
    sizes, expected = lp_norm(found - images, "l2"), linear_distances(network, images, labels)
    assert not right(network, found, labels).any()
    assert (sizes >= expected - 1e-5).all()
    assert (sizes <= 1.01 * expected + 1e-3).all()


@pytest.mark.parametrize("initial_const", [1e-3, 1.0, 10.0])
def test_the_first_constant_hardly_matters(plane, initial_const):
    network, images, labels = plane
    found = CarliniWagnerL2(steps=200, search_steps=12, initial_const=initial_const)(network, images, labels)
    expected = linear_distances(network, images, labels)
    assert (lp_norm(found - images, "l2") <= 1.05 * expected + 1e-3).all()


def test_without_a_box_a_linear_network_is_left_by_the_shortest_way_even_from_the_corners(plane):
    network, images, _ = plane
    images = images.round()
    labels = network(images).argmax(dim=1)
    found = CarliniWagnerL2(steps=500, box=False)(network, images, labels)
    expected = linear_distances(network, images, labels)
    shortest = lp_norm(found - images, "l2") <= 1.01 * expected + 1e-3
    # between two boundaries at about the same distance the first one that is met may be the other
    assert shortest.sum() >= 19
    assert found.min() < 0


@pytest.mark.parametrize("confidence", [0.5, 3.0])
def test_confidence_is_a_margin_in_logits(plane, confidence):
    network, images, labels = plane
    found = CarliniWagnerL2(steps=200, confidence=confidence, learning_rate=0.03)(network, images, labels)
    with torch.no_grad():
        won = margin(network(found), Goal(labels))
    assert (won >= confidence).all()
    assert (won <= confidence + 0.5).all()


def test_targets_are_reached_by_no_shorter_way_than_any_class(plane):
    network, images, labels = plane
    attack = CarliniWagnerL2(steps=200)
    free, sent = attack(network, images, labels), attack(network, images, labels, target_labels=(labels + 1) % 3)
    assert torch.equal(network(sent).argmax(dim=1), (labels + 1) % 3)
    assert (lp_norm(sent - images, "l2") >= lp_norm(free - images, "l2") * 0.98).all()


def test_foolbox_needs_more_passes_for_the_same_norms(network, images, labels):
    foolbox = pytest.importorskip("foolbox")
    images, labels = images[:-3].clamp(0.1, 0.9), labels[:-3]
    calls = []
    handle = network.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, theirs, _ = foolbox.attacks.L2CarliniWagnerAttack(steps=100)(model, images, labels, epsilons=None)
    handle.remove()
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(len(images), images.device)
    ours = CarliniWagnerL2(steps=100)(surrogate, images, labels)
    medians = [lp_norm(found - images, "l2").median() for found in (ours, theirs)]
    assert medians[0] <= 1.01 * medians[1]
    assert passes.forward.sum() < sum(calls) / 2


# what is returned


def test_misclassified_images_come_back_as_they_are_for_one_look(network, images, labels):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    found = CarliniWagnerL2(steps=20, search_steps=2)(surrogate, images, labels)
    assert torch.equal(found[-3:], images[-3:])
    assert passes.forward.tolist()[-3:] == [1, 1, 1]
    assert passes.backward.tolist()[-3:] == [0, 0, 0]


def test_the_smallest_adversarial_image_that_was_seen_is_returned(network, images, labels):
    recording = Recording(network)
    recording.fixed_shape = True
    found = CarliniWagnerL2(steps=20, search_steps=4, learning_rate=0.05, abort_early=False)(recording, images, labels)
    seen = torch.stack(recording.seen)
    sizes = torch.stack([lp_norm(iterates - images, "l2") for iterates in seen])
    sizes[torch.stack([right(network, iterates, labels) for iterates in seen])] = float("inf")
    fooled = sizes.amin(dim=0).isfinite()
    torch.testing.assert_close(lp_norm(found - images, "l2")[fooled], sizes.amin(dim=0)[fooled], atol=1e-6, rtol=1e-5)
    assert fooled.sum() > 8


def test_images_that_are_never_fooled_come_back_as_they_are(images):
    sure = Linear(torch.full((2, 72), 1e-3), torch.tensor([9.0, 0.0]))
    assert torch.equal(CarliniWagnerL2(steps=20)(sure, images, torch.zeros(16, dtype=torch.int64)), images)


# what it costs


@pytest.mark.parametrize(("steps", "search_steps"), [(1, 1), (7, 3), (25, 2), (100, 2)])
def test_images_that_are_never_fooled_cost_what_is_announced(images, steps, search_steps):
    surrogate = FullGradient(Linear(torch.full((2, 72), 1e-3), torch.tensor([9.0, 0.0])))
    passes = surrogate.start_counting(16, images.device)
    attack = CarliniWagnerL2(steps=steps, search_steps=search_steps, abort_early=False)
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    cost = attack.cost(2)
    assert passes.forward.tolist() == [cost.forward] * 16
    assert passes.backward.tolist() == [cost.backward] * 16
    assert steps * search_steps <= cost.backward <= 1.1 * steps * search_steps


def test_aborting_early_saves_passes_and_hardly_changes_norms(network, images, labels):
    counts, sizes = [], []
    for abort_early in (True, False):
        surrogate = FullGradient(network)
        passes = surrogate.start_counting(16, images.device)
        found = CarliniWagnerL2(steps=100, search_steps=4, abort_early=abort_early)(surrogate, images, labels)
        counts.append(passes.forward[:-3].sum())
        sizes.append(lp_norm(found - images, "l2")[:-3])
    assert counts[0] < counts[1] / 2
    assert sizes[0].median() <= 1.01 * sizes[1].median()


def test_a_fixed_shape_costs_an_image_what_it_costs_alone(network, images, labels):
    books = []
    for make in (FullGradient, Strict):
        surrogate = make(network)
        books.append(surrogate.start_counting(16, images.device))
        CarliniWagnerL2(steps=30, search_steps=4, learning_rate=0.05)(surrogate, images, labels)
        assert surrogate.working is None
    assert books[0].forward.tolist() == books[1].forward.tolist()
    assert books[0].backward.tolist() == books[1].backward.tolist()


# special cases


@pytest.mark.parametrize(("shape", "classes"), [((1, 5, 7), 2), ((3, 4, 6), 3), ((1, 4, 4), 100)])
def test_shapes_and_numbers_of_classes(shape, classes):
    images = middle_images(6, *shape)
    network = random_linear(classes, images[0].numel())
    labels = network(images).argmax(dim=1)
    found = CarliniWagnerL2(steps=100, learning_rate=0.02)(network, images, labels)
    assert not right(network, found, labels).any()


class Steep(nn.Module):
    """A network whose logits are too large to square in float32."""

    def __init__(self):
        super().__init__()
        self.network = seeded(lambda: random_linear(3, 48))

    def forward(self, images):
        return self.network(images) * 1e18


def test_gradients_too_large_to_square_give_finite_pixels():
    images = middle_images(4, 3, 4, 4)
    found = CarliniWagnerL2(steps=10, search_steps=2)(Steep(), images, torch.zeros(4, dtype=torch.int64))
    assert found.isfinite().all()


class Unlucky(FullGradient):
    """Not exact; its first answer is that of another class."""

    exact = False

    def logits(self, images, rng):
        logits = super().logits(images, rng)
        first, self.asked = not hasattr(self, "asked"), True
        return logits.flip(2) if first else logits


def test_one_unlucky_draw_does_not_make_the_image_itself_the_answer(network, images, labels):
    images, labels = images[:-3], labels[:-3]
    attack = CarliniWagnerL2(steps=30, search_steps=4, learning_rate=0.05)
    plain = attack(network, images, labels)
    found = attack(Unlucky(network), images, labels)
    assert (~right(network, found, labels)).sum() == (~right(network, plain, labels)).sum() > 8


def test_with_more_confidence_than_the_source_has_images_that_it_gets_wrong_move(network, images, labels):
    images, labels = images[-3:], labels[-3:]
    confidence = margin(network(images), Goal(labels)).max().item() + 0.2
    attack = CarliniWagnerL2(steps=60, search_steps=3, learning_rate=0.05, initial_const=1.0, confidence=confidence)
    found = attack(Undefended(network), images, labels)
    assert (margin(network(found), Goal(labels)) >= confidence).all()
    assert (lp_norm(found - images, "l2") > 0.01).all()


def test_a_search_in_bfloat16_fools_in_float32(network, images, labels):
    surrogate = FullGradient(network)
    surrogate.search_dtype = torch.bfloat16
    found = CarliniWagnerL2(steps=30, search_steps=4, learning_rate=0.05)(surrogate, images, labels)
    moved = (found != images).flatten(1).any(dim=1)
    assert moved.sum() > 8
    assert not right(network, found, labels)[moved].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps and search_steps must be at least 1, got 0 and 9"),
        ({"search_steps": 0}, "steps and search_steps must be at least 1, got 1000 and 0"),
        ({"initial_const": 0.0}, "initial_const and learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "initial_const and learning_rate must be above 0"),
        ({"confidence": -1.0}, "confidence must be a finite number of at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CarliniWagnerL2(**wrong)
