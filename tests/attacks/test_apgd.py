"""APGD against the paper, its own bookkeeping written out, and the authors' code as oracle."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_advdef.attacks import APGD, Attack, FullGradient, TargetedAPGD
from lightning_advdef.attacks.climb import checkpoint_gaps
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import COMPARING, LOSSES, cross_entropy, dlr
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm
from lightning_advdef.data import Digits, get_spec
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import (
    FooledInBfloat16,
    Linear,
    Recording,
    Strict,
    make_network,
    middle_images,
    random_linear,
    right,
    seeded,
)
from tests.conftest import GOLDEN

# schedule


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (10, [2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (40, [8, 15, 21, 26, 30, 33, 35, 37, 39]),
        (50, [11, 21, 30, 38, 45]),
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (200, [44, 82, 114, 140, 160, 174, 186, 198]),
    ],
)
def test_checkpoints_are_those_of_the_authors(steps, expected):
    assert list(checkpoint_gaps(steps)) == expected


@pytest.mark.parametrize("steps", range(1, 60))
def test_each_checkpoint_covers_the_steps_since_the_one_before(steps):
    gaps = checkpoint_gaps(steps)
    before = [0, *gaps][:-1]
    assert list(gaps.values()) == [finished - last for finished, last in zip(gaps, before, strict=True)]


# start and first step


def start_of(attack, images):
    network = random_linear(3, images[0].numel())
    recording = Recording(network, exact=False)
    attack(recording, images, torch.zeros(len(images), dtype=torch.int64))
    return recording.seen


def test_linf_starts_touch_the_budget_in_the_pixel_of_largest_noise():
    grey = middle_images(20, 3, 4, 5)
    noise = start_of(APGD(0.1, steps=1), grey)[0] - grey
    torch.testing.assert_close(lp_norm(noise, "linf"), torch.full((20,), 0.1))
    assert (noise.abs().flatten(1) > 0.0999).sum(dim=1).max() <= 2
    assert 0.02 < noise.abs().mean() < 0.08


def test_l2_starts_lie_on_the_sphere():
    grey = middle_images(20, 3, 4, 5)
    torch.testing.assert_close(
        lp_norm(start_of(APGD(0.2, "l2", steps=1), grey)[0] - grey, "l2"), torch.full((20,), 0.2)
    )


def test_every_restart_and_every_target_starts_elsewhere():
    grey = middle_images(5, 3, 4, 5)
    for attack, runs, ranking in ((APGD(0.1, steps=2, restarts=3), 3, 0), (TargetedAPGD(0.1, steps=2), 2, 1)):
        starts = torch.stack(start_of(attack, grey)[ranking::3]) - grey
        assert starts.shape[0] == runs
        assert len(starts.flatten(0, 1).flatten(1).unique(dim=0)) == runs * 5


def test_first_step_is_two_eps_long_before_it_is_cut_to_the_ball():
    grey = middle_images(20, 3, 4, 5, spread=0.1)
    start, after = start_of(APGD(0.1, steps=1), grey)
    assert start.shape == after.shape
    torch.testing.assert_close((after - grey).abs(), torch.full_like(grey, 0.1))


# the authors' code as oracle


@dataclass(frozen=True)
class Given(Attack):
    """Returns points made elsewhere."""

    points: Tensor | None = None

    def perturb(self, surrogate, images, goal, rng):
        return self.points


class Watched(nn.Module):
    """Keeps the images it is asked about."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        return self.network(images)


@pytest.fixture
def double():
    """Double precision for the tensors that the authors' code makes."""
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(torch.float32)


def theirs(network, norm, eps, loss, steps):
    autopgd = pytest.importorskip("pyautoattack.autopgd_base")
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    if loss == "dlr-targeted":
        return autopgd.APGDAttack_targeted(network, n_iter=steps, norm=name, eps=eps, device="cpu")
    return autopgd.APGDAttack(network, n_iter=steps, norm=name, eps=eps, loss=loss, device="cpu")


def both_paths(norm, eps, loss, steps, start, dtype, target=None):
    """Points that the network is asked about, by ours and by theirs; for DLR until it is fooled."""
    network = seeded(make_network).eval().to(dtype).requires_grad_(False)
    images = middle_images(12, 2, 6, 6, spread=0.45, seed=3).to(dtype)
    labels = network(images).argmax(dim=1)
    ball = LpBall(norm, images.new_full((12,), eps))
    points = (images + ball.project(start(images))).clamp(0, 1)
    goal = Goal(labels) if target is None else Goal(labels).towards((labels + target) % 4)
    ours = Recording(network, exact=False)
    attack = APGD(eps, norm, steps=steps, loss={"ce": "cross_entropy"}.get(loss, "dlr"), start=Given(points=points))
    attack.search(ours, images, goal, SampleRNG.default(images), ball)
    watched = Watched(network)
    peer = theirs(watched, norm, eps, loss, steps)
    peer.init_hyperparam(images)
    peer.y_target = goal.targets
    peer.attack_single_run(images, labels, x_init=points)
    right_so_far = torch.stack([network(seen).argmax(dim=1) == labels for seen in ours.seen]).cummin(dim=0).values
    # DLR is constant where the true class is third: its gradient is rounding there, and its direction anyone's guess
    alike = torch.cat([right_so_far[:1] | True, right_so_far[:-1]]) | (loss == "ce")
    assert alike[-1].sum() >= 3
    return torch.stack(ours.seen)[alike], torch.stack(watched.seen)[alike]


def noise(images):
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(5), dtype=images.dtype)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("linf", 0.06), ("l2", 0.1), ("l2", 0.3)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_points_are_the_authors_step_by_step(norm, eps, loss, double):
    ours, peer = both_paths(norm, eps, loss, 60, noise, double)
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.2)])
@pytest.mark.parametrize("target", [1, 2])
def test_targeted_points_are_the_authors_step_by_step(norm, eps, target, double):
    ours, peer = both_paths(norm, eps, "dlr-targeted", 60, noise, double, target)
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 10, 17])
def test_short_runs_follow_the_authors_too(steps, double):
    ours, peer = both_paths("linf", 0.1, "ce", steps, noise, double)
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-6)


def values_and_gradients(loss, logits):
    leaf = logits.clone().requires_grad_()
    values = loss(leaf)
    return values.detach(), *torch.autograd.grad(values.sum(), leaf)


@pytest.mark.parametrize("classes", [4, 10, 100])
def test_dlr_losses_have_the_authors_values_and_gradients(classes):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(300, classes, generator=generator, dtype=torch.float64)
    labels, shift = (torch.randint(low, classes, (300,), generator=generator) for low in (0, 1))
    goal = Goal(labels)
    peer = theirs(nn.Identity(), "linf", 0.1, "dlr-targeted", 1)
    peer.y_target = (labels + shift) % classes
    ours = values_and_gradients(lambda x: dlr(x, goal), logits)
    torch.testing.assert_close(ours, values_and_gradients(lambda x: peer.dlr_loss(x, labels), logits))
    ours = values_and_gradients(lambda x: dlr(x, goal.towards(peer.y_target)), logits)
    torch.testing.assert_close(ours, values_and_gradients(lambda x: peer.dlr_loss_targeted(x, labels), logits))


@pytest.fixture(scope="module")
def digits():
    network = MLP(get_spec("digits"), hidden=[32]).eval()
    network.load_state_dict(load_file(GOLDEN / "digits_mlp.safetensors"))
    data = Digits(batch_size=359)
    data.setup("test")
    images, labels, _ = next(iter(data.test_dataloader()))
    return network.requires_grad_(False), images, labels


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
@pytest.mark.parametrize("name", ["ce", "dlr", "dlr-targeted"])
@pytest.mark.filterwarnings("ignore:there are . points with zero gradient")
def test_robust_accuracy_is_the_authors(digits, norm, eps, name):
    network, images, labels = digits
    ours = {
        "ce": APGD(eps, norm, steps=20),
        "dlr": APGD(eps, norm, steps=20, loss="dlr"),
        "dlr-targeted": TargetedAPGD(eps, norm, steps=20, targets=3),
    }[name]
    peer = theirs(network, norm, eps, name, 20)
    peer.n_target_classes = 3
    robust = right(network, ours(network, images, labels), labels).sum()
    expected = right(network, peer.perturb(images, labels), labels).sum()
    # over eight seeds either counts 147 to 188 of 359, one way of attacking at most 8 apart
    assert 140 < expected < 195
    assert (robust - expected).abs() <= 8


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.filterwarnings("ignore:there are . points with zero gradient")
def test_verdicts_from_the_same_start_are_the_authors(digits, norm, eps, loss):
    network, images, labels = digits
    ball = LpBall(norm, images.new_full((len(images),), eps))
    points = (images + ball.project(noise(images))).clamp(0, 1)
    attack = APGD(eps, norm, steps=30, loss={"ce": "cross_entropy"}.get(loss, loss), start=Given(points=points))
    peer = theirs(network, norm, eps, loss, 30)
    peer.init_hyperparam(images)
    _, expected, _, _ = peer.attack_single_run(images, labels, x_init=points)
    assert (right(network, attack(network, images, labels), labels) != expected).sum() <= 1


# which image is returned


def test_an_exact_surrogate_gives_the_first_fooling_point(network, images, labels):
    recording = Recording(network, exact=True)
    strict = Recording(network, exact=True)
    strict.fixed_shape = True
    attack = APGD(0.08, steps=12)
    found = attack(recording, images, labels)
    assert torch.equal(attack(strict, images, labels), found)
    wrong = torch.stack([~right(network, seen, labels) for seen in strict.seen])
    fooled = wrong.any(dim=0)
    first = torch.stack(strict.seen)[wrong.int().argmax(dim=0), torch.arange(16)]
    assert torch.equal(found[fooled], first[fooled])
    assert 3 < fooled.sum() < 16
    assert len({len(seen) for seen in recording.seen}) > 2


@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - COMPARING))
@pytest.mark.parametrize("exact", [True, False])
def test_elsewhere_the_point_of_highest_loss_is_returned(network, images, labels, loss, exact):
    """An exact surrogate that no point fools, and one that decides nothing."""
    eps = 1e-3 if exact else 0.3
    recording = Recording(network, exact)
    found = APGD(eps, steps=12, restarts=2, loss=loss)(recording, images[:8], labels[:8])
    goal = Goal(labels[:8])
    with torch.no_grad():
        losses = torch.stack([LOSSES[loss](network(seen), goal) for seen in recording.seen])
        torch.testing.assert_close(LOSSES[loss](network(found), goal), losses.amax(dim=0))
    assert len(recording.seen) == 26


@pytest.mark.parametrize("sure_of", [0, 1])
def test_of_several_draws_the_mean_decides(images, sure_of):
    """The first draw is sure of one class, the last one leans to the other: the mean is with the first."""
    sure, leaning = ([3.0, 0.0], [0.0, 1.0]) if sure_of == 0 else ([0.0, 3.0], [1.0, 0.0])

    class TwoDraws(FullGradient):
        draws = 2

        def logits(self, images, rng):
            return torch.tensor([[sure], [leaning]]) + 0 * images.flatten(1)[:, :2]

    surrogate = TwoDraws(nn.Identity())
    passes = surrogate.start_counting(16, images.device)
    APGD(0.3, steps=6)(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.backward.tolist() == [2 if sure_of == 1 else 2 * 6] * 16


# targets


def test_targeted_apgd_goes_to_the_most_likely_wrong_classes_in_turn():
    network, grey = random_linear(6, 60, seed=4), middle_images(10, 3, 4, 5)
    with torch.no_grad():
        ranked = network(grey).argsort(dim=1, descending=True)
    recording = Recording(network, exact=False)
    TargetedAPGD(0.02, steps=1, targets=3, loss="margin")(recording, grey, ranked[:, 0])
    for rank in range(3):
        after = recording.seen[1 + 2 * rank + 1]
        slope = network.weight[ranked[:, 1 + rank]] - network.weight[ranked[:, 0]]
        torch.testing.assert_close(after, grey + 0.02 * slope.detach().sign().view_as(grey))


def test_the_true_class_is_no_target_of_a_misclassified_image():
    network, grey = random_linear(3, 60, seed=4), middle_images(10, 3, 4, 5)
    with torch.no_grad():
        ranked = network(grey).argsort(dim=1, descending=True)
    recording = Recording(network, exact=False)
    TargetedAPGD(0.02, steps=1, targets=1, loss="margin")(recording, grey, ranked[:, 1])
    slope = network.weight[ranked[:, 0]] - network.weight[ranked[:, 1]]
    torch.testing.assert_close(recording.seen[2], grey + 0.02 * slope.detach().sign().view_as(grey))


@pytest.mark.parametrize("classes", [2, 3, 4, 100])
def test_any_number_of_classes_is_attacked_in_each_norm(classes):
    network, grey = random_linear(classes, 60, seed=4), middle_images(30, 3, 4, 5)
    with torch.no_grad():
        labels = network(grey).argmax(dim=1)
    for norm, eps in (("linf", 0.05), ("l2", 0.4)):
        for attack in (APGD(eps, norm, steps=10, loss="dlr"), TargetedAPGD(eps, norm, steps=10)):
            assert right(network, attack(network, grey, labels), labels).sum() < 30


def test_two_linear_classes_resist_linf_where_the_margin_exceeds_eps_times_the_l1_norm():
    network, grey, labels = random_linear(2, 48, seed=1), middle_images(400, 3, 4, 4), torch.arange(400) % 2
    slope = (network.weight[0] - network.weight[1]).detach()
    with torch.no_grad():
        difference = network(grey) @ torch.tensor([1.0, -1.0])
    margins = torch.where(labels == 0, difference, -difference)
    for attack in (APGD(0.02, steps=10), TargetedAPGD(0.02, steps=10)):
        robust = right(network, attack(network, grey, labels), labels)
        assert torch.equal(robust, margins > 0.02 * slope.abs().sum())
        assert 0 < robust.sum() < 200


@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - COMPARING))
def test_given_targets_are_reached(network, images, labels, loss):
    targets = (labels + 1) % 4
    found = APGD(0.6, steps=30, loss=loss)(network, images, labels, target_labels=targets)
    assert right(network, found, targets).sum() >= 12


def test_targeted_apgd_chooses_its_targets_itself(network, images, labels):
    with pytest.raises(ValueError, match="TargetedAPGD has no targeted variant"):
        TargetedAPGD(0.1)(network, images, labels, target_labels=labels)


# what it costs


def unbeatable(classes):
    return Linear(torch.full((classes, 72), 1e-3), torch.arange(classes, 0, -1.0))


@pytest.mark.parametrize("make", [FullGradient, Strict])
@pytest.mark.parametrize("classes", [2, 5, 20])
@pytest.mark.parametrize(
    "attack",
    [APGD(0.1, steps=7, restarts=2), APGD(0.1, steps=7, start=APGD(0.1, steps=3)), TargetedAPGD(0.1, steps=3)],
    ids=["restarts", "start", "targets"],
)
def test_an_image_that_is_never_fooled_costs_what_the_attack_says(images, make, classes, attack):
    surrogate = make(unbeatable(classes))
    passes = surrogate.start_counting(16, images.device)
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.forward.tolist() == [attack.cost(classes).forward] * 16
    assert passes.backward.tolist() == [attack.cost(classes).backward] * 16


def test_the_costs_of_the_standard_evaluation():
    assert APGD(0.1).cost(10) == (101, 100)
    assert TargetedAPGD(0.1).cost(10) == (1 + 9 * 101, 900)


@pytest.mark.parametrize("attack", [APGD(0.06, steps=8, restarts=2), TargetedAPGD(0.06, steps=4)])
def test_a_fixed_shape_costs_an_image_what_it_costs_alone(network, images, labels, attack):
    books = []
    for make in (FullGradient, Strict):
        surrogate = make(network)
        books.append(surrogate.start_counting(16, images.device))
        attack(surrogate, images, labels)
        assert surrogate.working is None
    assert books[0].forward.tolist() == books[1].forward.tolist()
    assert books[0].backward.tolist() == books[1].backward.tolist()
    assert len(books[0].forward.unique()) > 2


def test_misclassified_images_cost_targeted_apgd_one_pass(network, images, labels):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    found = TargetedAPGD(0.05, steps=4)(surrogate, images, labels)
    assert passes.forward.tolist()[-3:] == [1, 1, 1]
    assert torch.equal(found[-3:], images[-3:])


# odd input


def test_zero_gradients_give_finite_images(images):
    network = Linear(torch.zeros(4, 72), torch.arange(4.0))
    for norm in APGD.norms:
        for attack in (APGD(0.1, norm, steps=5, loss="dlr"), TargetedAPGD(0.1, norm, steps=5)):
            assert attack(network, images, torch.full((16,), 3)).isfinite().all()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("make", [FullGradient, Strict])
def test_no_image_and_one_image_are_batches(network, images, labels, count, make):
    for attack in (APGD(0.1, steps=3), TargetedAPGD(0.1, steps=3)):
        assert attack(make(network), images[:count], labels[:count]).shape == images[:count].shape


def test_without_a_box_pixels_may_leave_it():
    network, grey = random_linear(2, 48, seed=1), middle_images(8, 3, 4, 4)
    found = APGD(0.5, steps=5, box=False)(Recording(network, exact=False), grey, torch.zeros(8, dtype=torch.int64))
    assert found.max() > 1
    torch.testing.assert_close(lp_norm(found - grey, "linf"), torch.full((8,), 0.5))


def test_a_search_in_bfloat16_gives_about_the_same_verdicts(network, images, labels):
    surrogate = FullGradient(network)
    surrogate.search_dtype = torch.bfloat16
    found = APGD(0.08, steps=12)(surrogate, images, labels)
    robust = right(network, found, labels)
    exact = right(network, APGD(0.08, steps=12)(network, images, labels), labels)
    assert (robust != exact).sum() <= 1


def test_what_fools_in_bfloat16_alone_is_climbed_on(images):
    surrogate = FullGradient(FooledInBfloat16())
    surrogate.search_dtype = torch.bfloat16
    passes = surrogate.start_counting(16, images.device)
    APGD(0.05, steps=6)(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.backward.tolist() == [6] * 16


# invariants and settings


def test_more_restarts_never_bring_an_image_back(network, images, labels):
    few, many = (right(network, APGD(0.04, steps=4, restarts=n)(network, images, labels), labels) for n in (1, 5))
    assert not (many & ~few).any()


def test_apgd_is_no_weaker_than_its_start(network, images, labels):
    start = APGD(0.05, steps=2)
    recording = Recording(network, exact=False)
    found = APGD(0.05, steps=6, start=start)(recording, images, labels)
    with torch.no_grad():
        losses = [cross_entropy(network(at), Goal(labels)) for at in (found, recording.seen[3])]
    assert (losses[0] >= losses[1]).all()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": 0}])
def test_steps_and_restarts_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="steps and restarts must be at least 1, got"):
        APGD(0.1, **wrong)


@pytest.mark.parametrize("rho", [-0.1, 1.1, float("nan")])
def test_rho_outside_0_to_1_is_refused(rho):
    with pytest.raises(ValueError, match=r"rho .* must lie in 0\.\.1, got"):
        APGD(0.1, rho=rho)


def test_no_targets_are_refused():
    with pytest.raises(ValueError, match="targets must be at least 1, got 0"):
        TargetedAPGD(0.1, targets=0)
