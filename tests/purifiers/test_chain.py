import pytest
import torch
from torch import nn

from lightning_advdef.purifiers import BitDepth, Chain
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


def test_parts_without_a_stand_in_are_taken_for_the_identity():
    assert Chain([BitDepth(1)]).stand_in() is None
    assert [type(part) for part in Chain([BitDepth(1), Darker()]).stand_in()] == [nn.AvgPool2d]


def test_a_chain_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Chain([])
