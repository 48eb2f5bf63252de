import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_advdef.attacks import BIM, FGSM, MIM, PGD, FullGradient, Noise, Undefended
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import COMPARING, LOSSES, cross_entropy
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import Linear, Recording, middle_images, random_linear, right

# known answers


@pytest.mark.parametrize("attack", [PGD, BIM])
@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - COMPARING))
@pytest.mark.parametrize("eps", [0.005, 0.01, 0.02, 0.04])
def test_two_linear_classes_resist_linf_where_the_margin_exceeds_eps_times_the_l1_norm(attack, loss, eps):
    network, grey, labels = random_linear(2, 48, seed=1), middle_images(400, 3, 4, 4), torch.arange(400) % 2
    slope = (network.weight[0] - network.weight[1]).detach()
    with torch.no_grad():
        difference = network(grey) @ torch.tensor([1.0, -1.0])
    margins = torch.where(labels == 0, difference, -difference)
    robust = right(network, attack(eps, steps=10, loss=loss)(network, grey, labels), labels)
    assert torch.equal(robust, margins > eps * slope.abs().sum())
    assert 0 < robust.sum() < 200


def largest_gain(slope, image, eps):
    """By how much pixels of [0, 1] moved by ``eps`` altogether can raise a linear score: the steepest ones first."""
    gain, left = 0.0, eps
    for pixel in slope.abs().argsort(descending=True).tolist():
        room = 1 - image[pixel] if slope[pixel] > 0 else image[pixel]
        gain += min(room, left) * abs(slope[pixel])
        left -= min(room, left)
    return gain


@pytest.mark.parametrize("attack", [FGSM, BIM, MIM])
@pytest.mark.parametrize("eps", [0.3, 0.6, 1.2])
def test_two_linear_classes_resist_l1_where_the_margin_exceeds_what_the_steepest_pixels_gain(attack, eps):
    network, colourful = random_linear(2, 48, seed=1), middle_images(200, 3, 4, 4, spread=0.5)
    with torch.no_grad():
        margins, labels = (network(colourful) @ torch.tensor([1.0, -1.0])).abs(), network(colourful).argmax(dim=1)
    slope = (network.weight[1] - network.weight[0]).detach()
    towards = torch.where(labels == 0, 1.0, -1.0).unsqueeze(1) * slope
    gains = [largest_gain(*pair, eps) for pair in zip(towards, colourful.flatten(1), strict=True)]
    robust = right(network, attack(eps, "l1")(network, colourful, labels), labels)
    assert torch.equal(robust, margins > torch.stack(gains))
    assert 0 < robust.sum() < 200


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_many_linear_classes_resist_where_the_smallest_margin_exceeds_eps_times_the_dual_norm(norm, eps):
    """Each class owns pixels of its own with weights 1, so that all boundaries have normals of the same norms."""
    weight = torch.eye(4).repeat(1, 12)
    network, grey = Linear(weight, torch.zeros(4)), middle_images(400, 3, 4, 4)
    with torch.no_grad():
        logits = network(grey)
    labels = logits.argmax(dim=1)
    best, second = logits.topk(2, dim=1).values.T
    slope = {"linf": 24.0, "l2": 24.0**0.5}[norm]
    attack = PGD(eps, norm, steps=10, random_start=False, loss="margin")
    robust = right(network, attack(network, grey, labels), labels)
    assert torch.equal(robust, best - second > eps * slope)


def test_one_step_of_full_length_without_random_start_is_fgsm(network, images, labels):
    for norm, eps in (("linf", 0.03), ("l2", 0.3)):
        one = PGD(eps, norm, steps=1, step_size=eps, random_start=False)
        # a surrogate that is not exact returns the last iterate wherever its loss is the highest
        found, expected = one(Recording(network, False), images, labels), FGSM(eps, norm)(network, images, labels)
        with torch.no_grad():
            higher = cross_entropy(network(expected), Goal(labels)) > cross_entropy(network(images), Goal(labels))
        assert higher.sum() > 10
        torch.testing.assert_close(found[higher], expected[higher])


def test_steps_follow_the_formula(network, images, labels):
    """Five steps of projected sign ascent, written out."""
    eps, size = 0.05, 0.02
    recording = Recording(network, exact=False)
    PGD(eps, steps=5, step_size=size, random_start=False)(recording, images, labels)
    iterate = images.clone()
    for seen in recording.seen:
        torch.testing.assert_close(seen, iterate)
        leaf = seen.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(network(leaf), Goal(labels)).sum(), leaf)
        iterate = torch.min(torch.max(seen + size * gradient.sign(), images - eps), images + eps).clamp(0, 1)
    assert len(recording.seen) == 6


def test_default_step_is_two_and_a_half_eps_over_steps():
    network, grey = random_linear(2, 48), middle_images(8, 3, 4, 4)
    recording = Recording(network, exact=False)
    PGD(0.1, steps=10, random_start=False)(recording, grey, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(lp_norm(recording.seen[1] - grey, "linf"), torch.full((8,), 0.025))


def test_bim_is_pgd_from_the_image_itself(network, images, labels):
    expected = PGD(0.05, steps=7, step_size=0.05 / 7, random_start=False)(network, images, labels)
    torch.testing.assert_close(BIM(0.05, steps=7)(network, images, labels), expected)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_lie_in_the_ball_and_differ_between_images_and_restarts(network, images, labels, norm):
    recording = Recording(network, exact=False)
    PGD(0.1, norm, steps=1, restarts=3)(recording, images, labels)
    starts = torch.stack(recording.seen[::2]) - images
    assert (lp_norm(starts.flatten(0, 1), norm) <= 0.1 + 1e-5).all()
    assert len(starts.flatten(0, 1).flatten(1).unique(dim=0)) == 3 * 16


# which iterate is returned


class Scripted(nn.Module):
    """Loses logit 0 with each brighter pixel; any image above a level is class 1."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, images):
        brightness = images.flatten(1).mean(dim=1)
        return torch.stack([self.level - brightness, brightness - self.level], dim=1) * 10


def brightness(images):
    return images.flatten(1).mean(dim=1)


def test_an_exact_surrogate_gives_the_first_fooling_iterate():
    dark, labels = torch.full((2, 1, 2, 2), 0.3), torch.zeros(2, dtype=torch.int64)
    attack = PGD(0.2, steps=10, step_size=0.02, random_start=False)
    recording = Recording(Scripted(level=0.35), exact=True)
    torch.testing.assert_close(brightness(attack(recording, dark, labels)), torch.full((2,), 0.36))
    assert len(recording.seen) == 4


def test_other_surrogates_give_the_iterate_of_highest_loss_after_all_steps():
    dark, labels = torch.full((2, 1, 2, 2), 0.3), torch.zeros(2, dtype=torch.int64)
    attack = PGD(0.2, steps=10, step_size=0.02, random_start=False)
    for surrogate in (Recording(Scripted(level=0.35), exact=False), Undefended(Scripted(level=0.35))):
        torch.testing.assert_close(brightness(attack(surrogate, dark, labels)), torch.full((2,), 0.5))


def test_the_highest_loss_need_not_be_the_last_iterate(network, images, labels):
    recording = Recording(network, exact=False)
    attack = PGD(0.3, steps=8, step_size=0.15, restarts=2)
    found = attack(recording, images, labels)
    with torch.no_grad():
        losses = torch.stack([cross_entropy(network(seen), Goal(labels)) for seen in recording.seen])
    best = losses.argmax(dim=0)
    assert torch.equal(found, torch.stack(recording.seen)[best, torch.arange(16)])
    assert (best != 8).any()


def test_of_an_exact_surrogate_that_is_never_fooled_the_highest_loss_is_returned():
    grey = torch.full((1, 1, 2, 2), 0.3)
    attack = PGD(0.1, steps=10, step_size=0.02, random_start=False)
    found = attack(Scripted(level=0.9), grey, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(brightness(found), torch.tensor([0.4]))


def test_misclassified_images_come_back_as_they_are(network, images, labels):
    found = PGD(0.05, steps=5, random_start=False)(network, images, labels)
    assert torch.equal(found[-3:], images[-3:])


# the loss of TRADES


def test_kl_pgd_is_the_loop_of_trades(network, images, labels):
    start = Noise(0.001 * 72**0.5, "l2", "gaussian")
    attack = PGD(0.05, steps=3, step_size=0.01, loss="kl_divergence", start=start)
    surrogate = FullGradient(network)
    surrogate.strongest = True
    rng = SampleRNG.default(images)
    begin = start.perturb(surrogate, images, None, rng.stream("attack").stream("restart", 0).stream("start"))
    natural = network(images).softmax(dim=1).detach()
    iterates, losses, x = [], [], begin
    for _ in range(4):
        x = x.detach().requires_grad_()
        loss = F.kl_div(network(x).log_softmax(dim=1), natural, reduction="none").sum(dim=1)
        iterates.append(x.detach())
        losses.append(loss.detach())
        x = x + 0.01 * torch.autograd.grad(loss.sum(), x)[0].sign()
        x = x.minimum(images + 0.05).maximum(images - 0.05).clamp(0, 1)
    best = torch.stack(losses).argmax(dim=0)
    expected = torch.stack(iterates)[best, torch.arange(len(images))]
    torch.testing.assert_close(attack(surrogate, images, labels, rng), expected)
    assert best.float().mean() > 2, "the loss grows"


@pytest.mark.parametrize("make", [BIM, MIM, functools.partial(PGD, random_start=False)])
def test_kl_needs_a_start_beside_the_image(make):
    with pytest.raises(ValueError, match=r"its gradient is zero: set random_start to true or give a start$"):
        make(0.05, loss="kl_divergence")
    assert make(0.05, loss="kl_divergence", start=Noise(0.01)).steps == make(0.05).steps


def test_kl_pgd_looks_at_the_unperturbed_image_once(network, images, labels):
    attack = PGD(0.05, steps=3, restarts=2, loss="kl_divergence", start=Noise(0.01, "l2"))
    surrogate = FullGradient(network)
    surrogate.strongest = True
    passes = surrogate.start_counting(16, images.device)
    attack(surrogate, images, labels)
    assert passes.forward.tolist() == [attack.cost(4).forward] * 16 == [2 * 4 + 1] * 16
    assert passes.backward.tolist() == [attack.cost(4).backward] * 16 == [2 * 3] * 16


# what it costs


class Counting(nn.Module):
    """Counts passes image by image; an image is known by its last pixel, which has no influence on the logits."""

    def __init__(self, network):
        super().__init__()
        self.network, self.forwards, self.backwards = network, torch.zeros(16), torch.zeros(16)

    def forward(self, images):
        numbers = (images[:, -1, -1, -1].detach() * 16).floor().long()
        self.forwards.index_add_(0, numbers, torch.ones(len(images)))
        if images.requires_grad:

            def count(_):
                self.backwards.index_add_(0, numbers, torch.ones(len(numbers)))

            images.register_hook(count)
        mask = torch.ones_like(images)
        mask[:, -1, -1, -1] = 0
        return self.network(images * mask)


@pytest.fixture
def numbered(images):
    images[:, -1, -1, -1] = (torch.arange(16) + 0.5) / 16
    return images


@pytest.mark.parametrize("restarts", [1, 3])
def test_passes_are_counted_exactly(network, numbered, labels, restarts):
    counting = Counting(network).eval()
    surrogate = FullGradient(counting)
    passes = surrogate.start_counting(16, numbered.device)
    PGD(0.02, steps=6, restarts=restarts)(surrogate, numbered, labels)
    assert torch.equal(passes.forward, counting.forwards.long())
    assert torch.equal(passes.backward, counting.backwards.long())
    assert len(passes.forward.unique()) > 1


def test_robust_images_cost_steps_plus_one_forward_and_steps_backward_passes(images):
    surrogate = FullGradient(Linear(torch.zeros(2, 72) + 1e-3, torch.tensor([9.0, 0.0])))
    passes = surrogate.start_counting(16, images.device)
    PGD(0.1, steps=7, restarts=2)(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert passes.forward.tolist() == [16] * 16
    assert passes.backward.tolist() == [14] * 16


def test_misclassified_images_cost_one_pass_each(network, images, labels):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    PGD(1e-6, steps=7, restarts=2)(surrogate, images, labels)
    assert passes.forward.tolist()[-3:] == passes.backward.tolist()[-3:] == [1, 1, 1]


def test_passes_belong_to_the_rows_of_the_whole_batch(network, images, labels):
    surrogate, rows = FullGradient(network), torch.tensor([2, 9])
    passes = surrogate.start_counting(16, images.device)
    PGD(1e-6, steps=3)(surrogate, images[rows], labels[rows], SampleRNG.default(images)[rows])
    assert passes.forward.nonzero().flatten().tolist() == [2, 9]


# invariants


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_larger_budget_is_never_safer(network, images, labels, norm):
    counts = [
        right(network, PGD(eps, norm, steps=20, restarts=2)(network, images, labels), labels).sum()
        for eps in (0, 0.01, 0.03, 0.1, 0.3, 1.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 13
    assert counts[-1] == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_more_steps_never_bring_an_image_back(network, images, labels, norm):
    eps = {"linf": 0.03, "l2": 0.15, "l1": 0.5}[norm]
    few, many = (
        right(network, PGD(eps, norm, steps=steps, step_size=eps / 5)(network, images, labels), labels)
        for steps in (2, 12)
    )
    assert not (many & ~few).any()


def test_more_restarts_never_bring_an_image_back(network, images, labels):
    few, many = (
        right(network, PGD(0.03, steps=3, restarts=restarts)(network, images, labels), labels) for restarts in (1, 6)
    )
    assert not (many & ~few).any()


def test_a_later_restart_changes_only_images_that_the_first_left(network, images, labels):
    first, more = (PGD(0.03, steps=3, restarts=restarts)(network, images, labels) for restarts in (1, 4))
    fooled = ~right(network, first, labels)
    assert torch.equal(more[fooled], first[fooled])
    assert 3 < fooled.sum() < 16


@pytest.mark.parametrize("attack", [PGD, BIM, MIM])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.2), ("l1", 1.0), ("l1", 60.0)])
def test_no_attack_is_weaker_than_noise_of_its_budget(attack, norm, eps):
    network, black_and_white = random_linear(4, 72, seed=1), middle_images(100, 2, 6, 6, spread=0.5).round()
    labels = network(black_and_white).argmax(dim=1)
    attacked, noisy = (
        right(network, each(eps, norm)(network, black_and_white, labels), labels).sum() for each in (attack, Noise)
    )
    assert attacked < noisy


# settings


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": 0}, {"steps": -1}])
def test_steps_and_restarts_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="steps and restarts must be at least 1, got"):
        PGD(0.1, **wrong)


@pytest.mark.parametrize("size", [0, -0.1, float("nan"), float("inf"), "0/255"])
def test_step_sizes_that_are_not_above_zero_are_refused(size):
    with pytest.raises(ValueError, match="step_size must be above 0, got"):
        PGD(0.1, step_size=size)


def test_step_size_may_be_written_as_a_quotient():
    assert PGD(0.1, step_size="2/255") == PGD(0.1, step_size=2 / 255)


def test_in_training_the_strongest_image_is_returned(network, images, labels):
    surrogate = FullGradient(network)
    surrogate.strongest = True
    attack = PGD(0.3, steps=5, random_start=False)
    judged, strongest = attack(network, images, labels), attack(surrogate, images, labels)
    losses = [cross_entropy(network.eval()(found), Goal(labels)) for found in (judged, strongest)]
    assert (losses[1] >= losses[0] - 1e-5).all()
    assert losses[1].mean() > losses[0].mean() + 1e-3


def test_a_fixed_shape_costs_an_image_what_it_costs_alone(network, images, labels):
    fast, strict = FullGradient(network), FullGradient(network)
    strict.fixed_shape = True
    books = [surrogate.start_counting(16, images.device) for surrogate in (fast, strict)]
    for surrogate in (fast, strict):
        PGD(0.05, steps=6)(surrogate, images, labels)
    assert books[0].backward.tolist() == books[1].backward.tolist()
