import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_advdef.data import get_spec
from lightning_advdef.defenses.ride import networks
from lightning_advdef.defenses.ride.networks import FCN, UNet, convolve, folded, grouped, unfolded
from lightning_advdef.defenses.ride.presets import per_image_network
from tests.defenses.ride.helpers import rng_of

WAYS = [grouped, unfolded, folded, convolve]
# networks, inputs, and channels before and after, so that ``convolve`` takes each of its ways
SIZES = [(1, 1, 1, 4), (3, 2, 4, 4), (2, 3, 6, 2), (4, 1, 3, 1)]


def tensors(networks, inputs, before, after):
    generator = torch.Generator().manual_seed(0)
    shapes = [(inputs, networks * before, 5, 7), (networks, after, before, 3, 3), (networks, after)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def one_by_one(images, weight, bias):
    """A convolution for each network in turn."""
    parts = images.chunk(len(weight), dim=1)
    found = [F.conv2d(part, own, shift, padding=1) for part, own, shift in zip(parts, weight, bias, strict=True)]
    return torch.cat(found, dim=1)


def gradients(convolution, arguments):
    return torch.autograd.grad(convolution(*arguments).sin().sum(), arguments, create_graph=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_each_network_convolves_its_own_images(way, size):
    arguments = tensors(*size)
    torch.testing.assert_close(way(*arguments), one_by_one(*arguments))


@pytest.mark.parametrize("way", WAYS)
def test_result_is_no_view(way):
    assert not way(*tensors(*SIZES[0]))._is_view()


@pytest.mark.parametrize("way", [unfolded, convolve])
@pytest.mark.parametrize("network", [FCN(4, 3), UNet(4, 2)])
def test_derivatives_do_not_depend_on_work_in_place(monkeypatch, way, network):
    monkeypatch.setattr(networks, "convolve", way)
    sides = []
    for relu in (Tensor.relu_, Tensor.relu):
        monkeypatch.setattr(Tensor, "relu_", relu)
        parameters = [one.double().requires_grad_() for one in network.initial(1, rng_of(2))]
        images = tensors(2, 1, 1, 1)[0]
        loss = network(images, parameters, lambda activations: activations * 0.5).sin().sum()
        first = torch.autograd.grad(loss, [images, *parameters], create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), [images, *parameters])
        sides.append([loss, *first, *second])
    for found, expected in zip(*sides, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_one_convolution_after_the_other(way, size):
    arguments = tensors(*size)
    for found, expected in zip(gradients(way, arguments), gradients(one_by_one, arguments), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_second_derivatives_are_those_of_one_convolution_after_the_other(way, size):
    arguments = tensors(*size)
    sides = []
    for convolution in (way, one_by_one):
        length = sum(gradient.square().sum() for gradient in gradients(convolution, arguments))
        sides.append(torch.autograd.grad(length, arguments))
    for found, expected in zip(*sides, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_layer_with_few_outputs_moves_these():
    wide, narrow = tensors(2, 1, 3, 8), tensors(2, 1, 8, 3)
    assert torch.equal(convolve(*narrow), folded(*narrow))
    assert torch.equal(convolve(*wide), grouped(*wide))


@pytest.mark.parametrize(
    ("spec", "count", "places"), [("mnist", 4945, (2, 3)), ("cifar10", 29507, (2, 3)), ("imagenet", 57251, (4, 5, 6))]
)
def test_networks_are_those_of_table_3(spec, count, places):
    spec = get_spec(spec)
    network = per_image_network("fcn", spec)
    parameters = network.initial(spec.channels, rng_of(1))
    assert sum(parameter.numel() for parameter in parameters) == count
    assert network.dropped == places


def plain_fcn(images, parameters, dropped=()):
    """The network of one image by the words of section 3, with 2 in place of dropout."""
    values = images
    for number in range(1, len(parameters) // 2 + 1):
        values = F.conv2d(values, parameters[2 * number - 2][0], parameters[2 * number - 1][0], padding=1)
        values = values if number == len(parameters) // 2 else F.relu(values)
        values = 2 * values if number in dropped else values
    return values


def test_relu_and_dropout_follow_the_layers_that_they_should():
    network = FCN(width=4, depth=5, dropped=(2, 4))
    parameters = network.initial(3, rng_of(1))
    images = torch.rand(2, 3, 6, 6)
    found = network(images, parameters, lambda activations: 2 * activations)
    torch.testing.assert_close(found, plain_fcn(images, parameters, (2, 4)))


@pytest.mark.parametrize("network", [FCN(4, 3, (2,)), FCN(4, 5, (2, 3, 4)), UNet(4, 3)])
def test_networks_drop_at_their_places_activations_of_one_shape(network):
    shapes = []
    network(torch.rand(1, 6, 8, 8), network.initial(3, rng_of(2)), lambda values: shapes.append(values.shape) or values)
    assert len(shapes) == len(set(network.places)) > 0
    assert len(set(shapes)) == 1


@pytest.mark.parametrize("size", [(28, 28), (30, 30), (7, 9)])
@pytest.mark.parametrize("network", [FCN(4, 3), UNet(4, 3)])
def test_images_keep_their_size(network, size):
    images = torch.rand(2, 3 * 2, *size)
    assert network(images, network.initial(2, rng_of(3)), lambda values: values).shape == images.shape


@pytest.mark.parametrize("network", [FCN(4, 3), UNet(4, 3)])
def test_networks_do_not_see_each_others_images(network):
    parameters = network.initial(1, rng_of(3))
    images = torch.rand(2, 3, 12, 12)
    together = network(images, parameters, lambda values: values)
    for number in range(3):
        own = [parameter[number : number + 1] for parameter in parameters]
        alone = network(images[:, number : number + 1], own, lambda values: values)
        torch.testing.assert_close(together[:, number : number + 1], alone)


def test_a_unet_has_skips_past_its_lowest_level():
    network = UNet(4, 3)
    parameters = network.initial(1, rng_of(1))
    found = network(torch.rand(1, 1, 16, 16), parameters, lambda values: torch.zeros_like(values))
    assert found[0, 0, 4:-4, 4:-4].std() > 1e-4
    lowest = network(torch.rand(1, 1, 4, 4), parameters, lambda values: values + 1e3)
    assert lowest.abs().mean() > 10


@pytest.mark.parametrize("network", [FCN(16, 4), UNet(8, 3)])
def test_initial_weights_are_xavier_uniform_and_biases_pytorchs_default(network):
    parameters = network.initial(1, rng_of(50))
    for number, (before, after) in enumerate(network.layers(1)):
        weight, bias = parameters[2 * number : 2 * number + 2]
        assert weight.shape == (50, after, before, 3, 3)
        assert bias.shape == (50, after)
        for values, bound in ((weight, math.sqrt(6 / (9 * before + 9 * after))), (bias, 1 / math.sqrt(9 * before))):
            assert values.abs().max() <= bound
            # uniform: variance bound^2 / 3, whose estimate has a relative deviation of sqrt(0.8 / count)
            assert values.var() == pytest.approx(bound**2 / 3, rel=5 * math.sqrt(0.8 / values.numel()))


def test_the_network_of_an_image_does_not_depend_on_its_batch():
    network, rng = FCN(4, 3), rng_of(9)
    for alone, together in zip(network.initial(1, rng[4:5]), network.initial(1, rng), strict=True):
        assert torch.equal(alone[0], together[4])
        assert not torch.equal(together[4], together[5])


def test_layers_of_a_network_have_weights_of_their_own():
    weights = FCN(4, 4).initial(1, rng_of(1))[2:6:2]
    assert not torch.equal(weights[0], weights[1])


def test_a_unet_stands_in_for_the_network_of_the_same_data():
    assert per_image_network("unet", get_spec("cifar10")) == networks.UNet(width=32, depth=3)
