import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_advdef.attacks import gradients
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import (
    boundaries,
    last_look,
    loss_and_gradient,
    mean_loss,
    traced_logits,
)
from lightning_advdef.attacks.losses import LOSSES, cross_entropy
from lightning_advdef.attacks.surrogates import FullGradient
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import random_linear


class Noisy(FullGradient):
    """Three draws, each of which scales the images by its own random number."""

    draws = 3

    def logits(self, images, rng):
        scales = rng.uniform(self.draws).T.reshape(self.draws, -1, 1, 1, 1)
        return torch.stack([self.defense(images * scale) for scale in scales])


class Brighter(FullGradient):
    """A surrogate with a further loss of its own."""

    def auxiliary(self, images, labels, rng):
        return images.flatten(1).sum(dim=1) * labels


@pytest.fixture
def rng(images):
    return SampleRNG.default(images)


def numerical_gradient(function, images, step=1e-4):
    """Central differences in float64; ``function`` maps images to one value per image."""
    images = images.double()
    gradient = torch.zeros_like(images)
    for pixel in range(images[0].numel()):
        move = torch.zeros_like(images).flatten(1)
        move[:, pixel] = step
        move = move.view_as(images)
        gradient.view(len(images), -1)[:, pixel] = (function(images + move) - function(images - move)) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(images, labels, rng, name):
    network = random_linear(4, 72).double()
    smooth = nn.Sequential(network, nn.Tanh())
    goal = Goal(labels, reference=smooth(images.double()).detach().flip(0))
    found = loss_and_gradient(FullGradient(smooth), images.double(), goal, LOSSES[name], rng)
    expected = numerical_gradient(lambda values: LOSSES[name](smooth(values), goal), images)
    # logits are rounded to float32 on the way
    torch.testing.assert_close(found.gradient, expected, rtol=1e-3, atol=1e-5)


def test_cross_entropy_gradient_of_a_linear_classifier_is_softmax_minus_one_hot(images, labels, rng):
    linear = random_linear(4, 72)
    found = loss_and_gradient(FullGradient(linear), images, Goal(labels), cross_entropy, rng)
    with torch.no_grad():
        expected = (linear(images).softmax(dim=1) - F.one_hot(labels, 4)) @ linear.weight
    torch.testing.assert_close(found.gradient, expected.view_as(images))


def test_images_do_not_influence_each_other(network, images, labels, rng):
    together = loss_and_gradient(FullGradient(network), images, Goal(labels), cross_entropy, rng)
    alone = loss_and_gradient(FullGradient(network), images[3:4], Goal(labels[3:4]), cross_entropy, rng[3:4])
    for whole, part in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[3:4], part)


def test_the_loss_is_averaged_over_the_draws_and_not_the_logits(network, images, labels, rng):
    surrogate = Noisy(network)
    found = loss_and_gradient(surrogate, images, Goal(labels), cross_entropy, rng)
    leaf = images.clone().requires_grad_()
    logits = surrogate.logits(leaf, rng)
    losses = sum(F.cross_entropy(draw, labels, reduction="none") for draw in logits) / 3
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    torch.testing.assert_close(found.loss, losses.detach())
    torch.testing.assert_close(found.gradient, gradient)
    torch.testing.assert_close(found.logits, logits.detach().mean(dim=0))


def test_auxiliary_loss_is_added(network, images, labels, rng):
    plain = loss_and_gradient(FullGradient(network), images, Goal(labels), cross_entropy, rng)
    added = loss_and_gradient(Brighter(network), images, Goal(labels), cross_entropy, rng)
    torch.testing.assert_close(added.loss, plain.loss + images.flatten(1).sum(dim=1) * labels)
    torch.testing.assert_close(added.gradient, plain.gradient + labels.view(-1, 1, 1, 1))


class Remembering(Noisy):
    """Has a further loss of what it was asked last."""

    def logits(self, images, rng):
        self.seen = images
        return super().logits(images, rng)

    def auxiliary(self, images, labels, rng):
        assert torch.equal(self.seen, images)
        return self.seen.flatten(1).sum(dim=1)


@pytest.mark.parametrize("max_rows", [None, 48, 20, 1])
def test_the_auxiliary_loss_of_a_part_follows_its_pass(network, images, labels, rng, max_rows):
    surrogate, whole = Remembering(network), Noisy(network)
    surrogate.max_rows = max_rows
    found, logits = mean_loss(surrogate, images, Goal(labels), cross_entropy, rng)
    expected = mean_loss(whole, images, Goal(labels), cross_entropy, rng)
    torch.testing.assert_close(found, expected[0] + images.flatten(1).sum(dim=1))
    torch.testing.assert_close(logits, expected[1])


def test_mean_loss_is_the_loss_that_is_differentiated(network, images, labels, rng):
    surrogate = Noisy(network)
    found = loss_and_gradient(surrogate, images, Goal(labels), cross_entropy, rng)
    loss, logits = mean_loss(surrogate, images, Goal(labels), cross_entropy, rng)
    torch.testing.assert_close(loss, found.loss)
    torch.testing.assert_close(logits, found.logits)


def test_a_last_look_gives_the_same_without_a_gradient_or_a_backward_pass(network, images, labels, rng):
    surrogate = Noisy(network)
    found = loss_and_gradient(surrogate, images, Goal(labels), cross_entropy, rng)
    passes = surrogate.start_counting(16, images.device)
    last = last_look(surrogate, images, Goal(labels), cross_entropy, rng)
    torch.testing.assert_close(last, found._replace(gradient=torch.zeros_like(images)))
    assert (passes.forward.tolist(), passes.backward.tolist()) == ([surrogate.draws] * 16, [0] * 16)
    assert not any(values.requires_grad for values in last)


def jacobian_of(network, images):
    """Gradient of each logit by its image, shape ``(N, K, C, H, W)``, by torch itself."""
    return torch.stack(
        [torch.autograd.functional.jacobian(lambda pixels: network(pixels[None])[0], image) for image in images]
    )


def test_boundaries_are_differences_of_logits_and_of_their_gradients(network, images, rng):
    classes = torch.tensor([[3, 0, 1], [1, 2, 0]])
    found = boundaries(FullGradient(network), images[:2], classes, rng[:2])
    logits = network(images[:2]).detach()
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.gaps, logits.gather(1, classes[:, 1:]) - logits.gather(1, classes[:, :1]))
    jacobian = jacobian_of(network, images[:2])[torch.arange(2)[:, None], classes]
    torch.testing.assert_close(found.normals, jacobian[:, 1:] - jacobian[:, :1])


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_gradients_do_not_depend_on_how_many_share_a_call(network, images, rng, monkeypatch, together):
    expected = boundaries(FullGradient(network), images, None, rng).normals
    monkeypatch.setitem(gradients.ROWS_PER_CALL, "cpu", together * len(images))
    torch.testing.assert_close(boundaries(FullGradient(network), images, None, rng).normals, expected)


@pytest.mark.parametrize(("wanted", "count"), [(2, 2), (3, 3), (100, 4), (None, 4)])
def test_boundaries_of_a_number_of_classes_are_those_of_the_highest_logits(network, images, rng, wanted, count):
    found = boundaries(FullGradient(network), images, wanted, rng)
    assert torch.equal(found.classes, network(images).argsort(dim=1, descending=True)[:, :count])
    assert found.normals.shape == (16, count - 1, 2, 6, 6)


def test_boundaries_cost_a_backward_pass_per_other_class(network, images, rng):
    surrogate = Noisy(network)
    surrogate.max_rows = 20
    passes = surrogate.start_counting(16, images.device)
    boundaries(surrogate, images, 3, rng)
    assert passes.forward.tolist() == [3] * 16
    assert passes.backward.tolist() == [6] * 16


def test_boundaries_are_those_of_the_mean_over_the_draws(network, images, rng):
    surrogate = Noisy(network)
    found = boundaries(surrogate, images, torch.tensor([[2, 1]]).expand(16, 2), rng)
    leaf = images.clone().requires_grad_()
    mean = surrogate.logits(leaf, rng).mean(dim=0)
    (expected,) = torch.autograd.grad((mean[:, 1] - mean[:, 2]).sum(), leaf)
    torch.testing.assert_close(found.normals[:, 0], expected)


def test_results_are_detached_and_the_images_untouched(network, images, labels, rng):
    found = loss_and_gradient(FullGradient(network), images, Goal(labels), cross_entropy, rng)
    others = boundaries(FullGradient(network), images, None, rng)
    assert not any(tensor.requires_grad for tensor in (*found, *others, images))


def test_passes_are_booked_per_draw_and_class(network, images, labels, rng):
    surrogate = Noisy(network)
    passes = surrogate.start_counting(16, images.device)
    loss_and_gradient(surrogate, images[:5], Goal(labels[:5]), cross_entropy, rng[:5])
    boundaries(surrogate, images[:2], torch.tensor([[0, 1, 2]] * 2), rng[:2])
    assert passes.forward.tolist() == [6, 6, 3, 3, 3] + [0] * 11
    assert passes.backward.tolist() == [9, 9, 3, 3, 3] + [0] * 11


class Quantised(nn.Module):
    def forward(self, images):
        return images.detach().flatten(1)[:, :4]


def test_a_cut_gradient_is_zero_and_booked_as_such(images, labels, rng):
    surrogate = FullGradient(Quantised())
    passes = surrogate.start_counting(16, images.device)
    found = loss_and_gradient(surrogate, images, Goal(labels), cross_entropy, rng)
    normals = boundaries(surrogate, images, None, rng).normals
    assert found.gradient.shape == images.shape
    assert normals.shape == (len(images), 3, *images.shape[1:])
    assert not found.gradient.any()
    assert not normals.any()
    assert passes.zero_gradients.tolist() == [2] * len(images)


def test_zero_gradients_are_not_booked_where_there_is_a_gradient(network, images, labels, rng):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    loss_and_gradient(surrogate, images, Goal(labels), cross_entropy, rng)
    assert not passes.zero_gradients.any()


def test_a_traced_pass_gives_the_gradients_of_sums_of_logits(network, images, rng):
    trace = traced_logits(FullGradient(network), images, rng)
    cotangents = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trace.logits, network(images).detach())
    expected = torch.einsum("mnk,nkchw->nmchw", cotangents, jacobian_of(network, images))
    torch.testing.assert_close(trace.gradients(cotangents), expected)
    single = traced_logits(FullGradient(network), images, rng).gradients(cotangents[:1])
    torch.testing.assert_close(single, expected[:, :1])


def test_a_traced_pass_is_booked_for_the_gradients_that_are_wanted(network, images, rng):
    surrogate = Noisy(network)
    passes = surrogate.start_counting(16, images.device)
    trace = traced_logits(surrogate, images[:4], rng[:4])
    trace.gradients(torch.ones(2, 4, 4), wanted=torch.tensor([True, False, True, False]))
    assert passes.forward.tolist() == [3] * 4 + [0] * 12
    assert passes.backward.tolist() == [6, 0, 6, 0] + [0] * 12
