"""Wide residual networks against the paper's numbers and a block written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_advdef.models import WideResNet

from .helpers import CIFAR, DIGITS, count_parameters, images_of


@pytest.fixture
def network():
    torch.manual_seed(0)
    return WideResNet(DIGITS, depth=16, width=1)


def outputs_of(network, images):
    """Output of every named layer in one pass."""
    found = {}
    for name, layer in network.named_modules():
        layer.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
    network(images)
    return found


# 36,479,194 and 8,949,210 as other implementations of WRN-28-10 and WRN-40-4 count them
@pytest.mark.parametrize(("depth", "width", "count"), [(28, 10, 36_479_194), (40, 4, 8_949_210)])
def test_parameters_are_those_of_the_authors_networks(depth, width, count):
    with torch.device("meta"):
        assert count_parameters(WideResNet(CIFAR, depth, width)) == count


@pytest.mark.parametrize("depth", [10, 28])
def test_depth_is_the_number_of_convolutions(depth):
    with torch.device("meta"):
        network = WideResNet(CIFAR, depth=depth, width=2)
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == depth


def test_groups_widen_and_halve():
    with torch.device("meta"):
        found = outputs_of(WideResNet(CIFAR, depth=10, width=10), torch.rand(2, *CIFAR.shape))
    shapes = [tuple(found[f"features.group{group}"].shape) for group in range(3)]
    assert shapes == [(2, 160, 32, 32), (2, 320, 16, 16), (2, 640, 8, 8)]
    assert found["features"].shape == (2, 640)


def test_an_identity_block_adds_to_its_raw_input(network):
    found = outputs_of(network.eval(), images_of(DIGITS))
    block, before = network.features.group1.block1, found["features.group1.block0"]
    x = F.conv2d(F.relu(block.bn1(before)), block.conv1.weight, padding=1)
    x = F.conv2d(F.relu(block.bn2(x)), block.conv2.weight, padding=1)
    assert block.shortcut is None
    torch.testing.assert_close(found["features.group1.block1"], before + x)


def test_a_shortcut_leaves_behind_the_first_relu(network):
    found = outputs_of(network.eval(), images_of(DIGITS))
    block, before = network.features.group1.block0, found["features.group0"]
    activated = F.relu(block.bn1(before))
    x = F.conv2d(activated, block.conv1.weight, stride=2, padding=1)
    x = F.conv2d(F.relu(block.bn2(x)), block.conv2.weight, padding=1)
    torch.testing.assert_close(
        found["features.group1.block0"], x + F.conv2d(activated, block.shortcut.weight, stride=2)
    )


def test_groups_give_raw_sums_and_the_end_is_normalised(network):
    found = outputs_of(network.eval(), images_of(DIGITS))
    assert (found["features.group0"] < 0).any()
    expected = F.relu(network.features.bn(found["features.group2"])).mean(dim=(2, 3))
    torch.testing.assert_close(found["features"], expected)


def test_dropout_lies_between_the_convolutions_in_training_alone():
    torch.manual_seed(0)
    network, images = WideResNet(DIGITS, depth=10, width=1, dropout=0.5), images_of(DIGITS, 4)
    found = outputs_of(network.train(), images)
    block = "features.group0.block0"
    dropped, whole = found[f"{block}.dropout"] == 0, found[f"{block}.relu2"] == 0
    assert 0.3 < (dropped & ~whole).sum() / (~whole).sum() < 0.7
    assert torch.equal(network.eval()(images), network(images))


@pytest.mark.parametrize(
    "settings", [{"depth": 27}, {"depth": 4}, {"depth": 12}, {"width": 0}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"depth 10, 16, 22, 28, \.\.\., width >= 1 and dropout in \[0, 1\), got"):
        WideResNet(CIFAR, **settings)


def test_images_too_small_are_refused():
    with pytest.raises(ValueError, match="at least 4x4 pixels"):
        WideResNet(DIGITS._replace(height=3), depth=10, width=1)
