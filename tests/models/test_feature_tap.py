"""The tap of a layer: its value, what does not run, and that it is the network's own."""

import copy
import math
import re
import warnings
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from lightning_advdef.models import VGG, FeatureTap, ResNet, WideResNet, layer_names

from .helpers import CIFAR, DIGITS, images_of

IMAGES = images_of(DIGITS, 3)
LAYERS = ["features.conv1", "features.group0", "features.group1.block0", "features.group2", "features"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = WideResNet(DIGITS, depth=10, width=1)
    network(images_of(DIGITS, 8))  # statistics that are not those of the start
    return network.eval()


def hooked(network, layer, images=IMAGES):
    """The output of a layer as a forward hook sees it."""
    seen = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    network(images)
    handle.remove()
    return seen[0]


def calls(network):
    """Names of the layers that run from now on; tracing enters modules that hold others, and none else."""
    called = []
    for name, layer in network.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
    return called


# values


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_features_are_those_that_a_forward_hook_sees(network, layer, training):
    tap = FeatureTap(network.train(training), layer)
    assert torch.equal(tap.features(IMAGES), hooked(network, layer))


def test_nodes_that_are_no_modules_can_be_tapped(network):
    tap = FeatureTap(network, "features.group0.block0.add")
    assert torch.equal(tap.features(IMAGES), hooked(network, "features.group0"))
    assert torch.equal(FeatureTap(network, "images").features(IMAGES), IMAGES)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_features_and_logits_come_from_one_pass(network, layer, training):
    tap = FeatureTap(network.train(training), layer)
    expected = hooked(network, layer), network(IMAGES)
    tap.features_and_logits(IMAGES)
    called = calls(network)
    features, logits = tap.features_and_logits(IMAGES)
    assert torch.equal(features, expected[0])
    assert torch.equal(logits, expected[1])
    assert len(called) == len(set(called))


def test_gradients_of_images_and_weights_are_those_of_the_network(network):
    tap, leaf = FeatureTap(network, "features.group0"), IMAGES.clone().requires_grad_()
    features, logits = tap.features_and_logits(leaf)
    weights = [leaf, *network.parameters()]
    found = torch.autograd.grad(features.square().sum() + logits.square().sum(), weights)
    expected = torch.autograd.grad(
        hooked(network, "features.group0", leaf).square().sum() + network(leaf).square().sum(), weights
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# VGG has ReLU layers that work in place, the blocks of ResNet also add in place
ARCHITECTURES = {
    "resnet": lambda: ResNet(DIGITS, depth=10, width=4),
    "vgg": lambda: VGG(CIFAR, depth=11),
    "wide_resnet": lambda: WideResNet(DIGITS, depth=10, width=1),
}


def before_inplace(network):
    """Three layers before one that works in place, or of all if the network has none; taps trace slowly."""
    names, modules = layer_names(network), dict(network.named_modules())
    # the second call of a module has the name of the first and _1
    inplace = {name for name in names if getattr(modules.get(re.sub(r"_\d+$", "", name)), "inplace", False)}
    chosen = [name for name, following in pairwise(names) if following in inplace] or names[:-1]
    return chosen[:: math.ceil(len(chosen) / 3)]


def all_layers(network):
    """All but the last."""
    return layer_names(network)[:-1]


@pytest.mark.parametrize("layers", [before_inplace, pytest.param(all_layers, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_that_work_in_place_change_no_features_before_them(architecture, layers):
    torch.manual_seed(0)
    network = ARCHITECTURES[architecture]()
    leaf = images_of(network.spec).requires_grad_()
    for layer in layers(network):
        tap = FeatureTap(network, layer)
        for training in (True, False):
            network.train(training)
            alone, (beside, logits) = tap.features(leaf), tap.features_and_logits(leaf)
            assert torch.equal(alone, beside), layer
            assert torch.equal(logits, network(leaf)), layer
            gradients = (torch.autograd.grad(features.square().mean(), leaf)[0] for features in (alone, beside))
            torch.testing.assert_close(*gradients)


def test_torchvisions_networks_can_be_tapped():
    torch.manual_seed(0)
    network, images = torchvision.models.resnet18(num_classes=3).eval(), torch.rand(1, 3, 32, 32)
    assert torch.equal(FeatureTap(network, "layer1").features(images), hooked(network, "layer1", images))


# what does not run


def test_no_layer_behind_the_tap_runs(network):
    tap = FeatureTap(network, "features.group0")
    called = calls(network)
    for _ in range(2):
        tap.features(IMAGES)
    before = [name for name in called if name.startswith(("normalize", "features.conv1", "features.group0."))]
    assert called == before
    assert called.count("features.group0.block0.conv2") == 2


def test_layers_beside_the_path_do_not_run(network):
    tap = FeatureTap(network, "features.group1.block0.conv2")
    called = calls(network)
    tap.features(IMAGES)
    assert "features.group1.block0.conv2" in called
    assert "features.group1.block0.shortcut" not in called


# names


def test_names_come_in_the_order_of_execution(network):
    names = layer_names(network)
    assert names[0] == "images"
    assert names[-1] == "head"
    wanted = ["normalize", "features.conv1", "features.group0.block0.add", "features.group1.block0.bn1", "features.bn"]
    assert [name for name in names if name in wanted] == wanted


@pytest.mark.parametrize("layer", ["features.group3", "features.group", "group0", "", "head"])
def test_unknown_layers_and_the_output_are_refused_with_the_list(network, layer):
    with pytest.raises(
        ValueError, match=rf"WideResNet has no layer '{layer}' before its output: choose one of"
    ) as error:
        FeatureTap(network, layer)
    listed = str(error.value).rpartition("choose one of ")[2].split(", ")
    assert listed == layer_names(network)[:-1]


class Branching(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_a_network_that_cannot_be_traced_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"Branching cannot be traced for its layers \(.+\): take a network"):
        FeatureTap(Branching(), "images")


# one network, not two


class Holder(nn.Module):
    """Holds a tap, as a defense does."""

    def __init__(self, network, layer="features.group0"):
        super().__init__()
        self.classifier = network
        self.tap = FeatureTap(network, layer)


def test_a_module_that_holds_a_tap_has_the_weights_once(network):
    holder = Holder(network)
    holder.tap.features(IMAGES)
    holder.tap.features_and_logits(IMAGES)
    assert list(holder.state_dict()) == [f"classifier.{name}" for name in network.state_dict()]
    assert len(list(holder.parameters())) == len(list(network.parameters()))


@pytest.fixture
def tap(network):
    """A tap whose extractors have been made."""
    tap = FeatureTap(network, "features.group0")
    tap.features(IMAGES)
    tap.features_and_logits(IMAGES)
    return tap


def assert_follows(tap, images=IMAGES):
    expected = hooked(tap.network, tap.layer, images)
    assert torch.equal(tap.features(images), expected)
    assert torch.equal(tap.features_and_logits(images)[0], expected)


def test_loaded_weights_and_statistics_are_seen(tap):
    before = tap.features(IMAGES)
    torch.manual_seed(1)
    other = WideResNet(DIGITS, depth=10, width=1)
    other(5 * images_of(DIGITS, 8))
    tap.network.load_state_dict(other.state_dict())
    assert_follows(tap)
    assert not torch.equal(tap.features(IMAGES), before)


def test_a_step_of_an_optimizer_is_seen(tap):
    before = tap.features(IMAGES)
    optimizer = torch.optim.SGD(tap.network.parameters(), lr=0.1)
    tap.network(IMAGES).square().sum().backward()
    optimizer.step()
    assert_follows(tap)
    assert not torch.equal(tap.features(IMAGES), before)


@pytest.mark.parametrize("read", ["features", "features_and_logits"])
def test_batch_norm_follows_the_mode_and_books_its_statistics_once(tap, read):
    network = tap.network
    norm = network.features.group0.block0.bn1
    eval_mode = tap.features(IMAGES)
    network.train()
    seen = int(norm.num_batches_tracked)
    getattr(tap, read)(IMAGES)
    assert int(norm.num_batches_tracked) == seen + 1
    assert not torch.equal(tap.features(IMAGES), eval_mode)
    network.eval()
    mean = norm.running_mean.clone()
    getattr(tap, read)(IMAGES)
    assert torch.equal(norm.running_mean, mean)


def test_frozen_batch_norm_stays_frozen(network):
    def modes():
        return [module.training for module in network.modules()]

    network.train()
    network.features.group0.block0.bn1.eval()
    before = modes()
    tap = FeatureTap(network, "features.group0")
    assert modes() == before
    tap.features(IMAGES)
    assert modes() == before
    network.eval()
    tap.features_and_logits(IMAGES)
    network.train()
    network.features.group0.block0.bn1.eval()
    tap.features_and_logits(IMAGES)
    tap.features(IMAGES)
    assert modes() == before


class Functional(nn.Module):
    """Has a buffer and dropout without modules of their own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.ones(1))
        self.linear = nn.Linear(4, 3)

    def forward(self, images):
        return self.linear(nn.functional.dropout(images + self.shift, training=self.training))


def test_functional_dropout_follows_the_mode():
    network, images = Functional().eval(), torch.rand(64, 4)
    tap = FeatureTap(network, "dropout")
    assert torch.equal(tap.features(images), images + 1)
    network.train()
    assert (tap.features(images) == 0).any()
    network.eval()
    assert torch.equal(tap.features(images), images + 1)


def test_a_move_to_another_device_is_followed_by_buffers_without_a_module():
    network = Functional().eval()
    tap = FeatureTap(network, "dropout")
    tap.features(torch.rand(2, 4))
    network.to("meta")
    assert tap.features(torch.rand(2, 4, device="meta")).device.type == "meta"


def test_another_dtype_and_memory_format_are_followed(tap):
    tap.network.to(memory_format=torch.channels_last)
    assert_follows(tap)
    tap.network.double()
    assert_follows(tap, IMAGES.double())


def test_a_copy_of_a_module_with_a_tap_taps_itself(network):
    holder = Holder(network)
    holder.tap.features(IMAGES)
    twin = copy.deepcopy(holder)
    before = holder.tap.features(IMAGES)
    with torch.no_grad():
        twin.classifier.features.conv1.weight.mul_(2)
    assert twin.tap.network is twin.classifier
    assert_follows(twin.tap)
    assert torch.equal(holder.tap.features(IMAGES), before)


def test_a_tap_made_in_inference_mode_serves_autograd_afterwards(network):
    with torch.inference_mode():
        tap = FeatureTap(network, "features.group0")
        tap.features(IMAGES)
    leaf = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(tap.features(leaf).sum(), leaf)
    assert gradient.any()


def test_nothing_is_warned_of(network):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tap = FeatureTap(network.train(), "features.group0")
        tap.features(IMAGES)
        tap.features_and_logits(IMAGES)
