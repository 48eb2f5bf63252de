import pytest
import torch

from lightning_advdef.purifiers import JPEG, BitDepth, Chain, GaussianBlur, Median, NonLocalMeans
from lightning_advdef.rng import SampleRNG
from tests.purifiers.helpers import Darker


@pytest.fixture
def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_parts_are_applied_in_order(images):
    rng = SampleRNG.default(images)
    assert torch.equal(Chain([Darker(), BitDepth(1)])(images, rng), torch.zeros_like(images))
    assert torch.equal(Chain([BitDepth(1), Darker()])(images, rng), images.round() / 2)


def test_equal_parts_draw_different_numbers(images):
    noise = Chain([Darker(1.0), Darker(1.0)])(torch.zeros_like(images), SampleRNG.default(images))
    first = SampleRNG.default(images).stream("chain", 0).uniform(1, 8, 8)
    assert (noise != first / 2 + first).all()


def test_one_stochastic_part_makes_it_stochastic():
    assert Chain([BitDepth(1), Darker(0.1)]).stochastic
    assert not Chain([BitDepth(1), Darker()]).stochastic


def test_one_part_without_a_gradient_cuts_it():
    assert not Chain([Darker(), BitDepth(1)]).differentiable
    assert Chain([Darker(), Darker()]).differentiable


def weighted_gradient(function, images, weights):
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad((function(leaf) * weights).sum(), leaf)[0]


def test_a_part_with_a_gradient_keeps_it_between_parts_without():
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weights, rng = torch.arange(images.numel()).view_as(images) / 100, SampleRNG.default(images)
    parts = [BitDepth(5), Median(2, padding="mirror"), NonLocalMeans(strength=20.0)]
    found = weighted_gradient(lambda leaf: Chain(parts).with_gradient(leaf, rng), images, weights)
    expected = weighted_gradient(lambda leaf: parts[1](leaf, rng), parts[0](images, rng), weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(found, weights), "the identity"


def test_a_stand_in_is_differentiated_at_what_the_parts_before_it_made(images):
    weights, rng = torch.arange(images.numel()).view_as(images) / 100, SampleRNG.default(images)
    parts = [GaussianBlur(1.0), JPEG(50)]
    found = weighted_gradient(lambda leaf: Chain(parts).with_gradient(leaf, rng), images, weights)
    behind = weighted_gradient(parts[1].stand_in(), parts[0](images, rng), weights)
    torch.testing.assert_close(found, weighted_gradient(lambda leaf: parts[0](leaf, rng), images, behind))
    assert not torch.allclose(behind, weights, rtol=0.1)


def test_a_chain_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Chain([])
