"""Adversarial weight perturbation against the authors' algorithm, written with a second network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_advdef.defenses.adversarial_training.weight_perturbation import perturbed_view
from tests.attacks.helpers import seeded

IMAGES = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


@pytest.fixture
def network():
    return seeded(make).train()


def loss_of(network):
    return F.cross_entropy(network(IMAGES), LABELS)


def moved_by_hand(network, gamma):
    """A copy whose convolution and linear weights took a step of relative size gamma up the gradient."""
    proxy = copy.deepcopy(network)
    loss_of(proxy).backward()
    moved = copy.deepcopy(network)
    for index in (0, 4):
        weight, gradient = network[index].weight, proxy[index].weight.grad
        if gradient is None:
            continue
        moved[index].weight.data = weight.data + gamma * weight.data.norm() / gradient.norm() * gradient
    return moved


def view_of(network, gamma=0.05):
    return perturbed_view(network, loss_of, gamma, lambda values: values)


def test_loss_and_gradient_are_those_at_the_moved_weights(network):
    moved = moved_by_hand(network, 0.05)
    expected = loss_of(moved)
    expected.backward()
    loss = loss_of(view_of(network))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert loss > loss_of(copy.deepcopy(network)) + 0.01
    for ours, theirs in zip(network.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_parameters_are_the_same_bits_before_and_after(network):
    before = {name: value.clone() for name, value in network.named_parameters()}
    loss_of(view_of(network)).backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_the_step_that_finds_the_perturbation_leaves_no_trace(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    view_of(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_running_statistics_follow_the_pass_of_the_view_alone(network):
    moved = moved_by_hand(network, 0.05)
    loss_of(moved)
    loss_of(view_of(network))
    torch.testing.assert_close(network[1].running_mean, moved[1].running_mean)
    assert network[1].num_batches_tracked == 1


def test_an_error_in_the_loss_restores_batch_norm(network):
    with pytest.raises(ZeroDivisionError):
        perturbed_view(network, lambda _: 1 / 0, 0.05, lambda values: values)
    assert network[1].track_running_stats


def test_gradients_are_averaged_as_one_vector(network):
    sizes = []

    def negated(values):
        sizes.append(values.numel())
        return -values

    loss = loss_of(perturbed_view(network, loss_of, 0.05, negated))
    torch.testing.assert_close(loss, loss_of(moved_by_hand(network, -0.05)))
    assert sizes == [network[0].weight.numel() + network[4].weight.numel()]


def test_autocast_sees_the_moved_weights(network):
    """A cast copy of the weights that autocast kept from the first pass would give the first loss again."""
    with torch.autocast("cpu", torch.bfloat16):
        plain = loss_of(network)
        moved = loss_of(view_of(network, gamma=0.1))
    by_hand = moved_by_hand(network, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_of(by_hand)
    assert moved > plain + 0.02
    torch.testing.assert_close(moved, expected, rtol=2e-2, atol=0)


def test_frozen_weights_stay(network):
    network[0].requires_grad_(False)
    moved = moved_by_hand(network, 0.05)
    torch.testing.assert_close(loss_of(view_of(network)), loss_of(moved))
