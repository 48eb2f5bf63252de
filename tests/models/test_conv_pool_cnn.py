"""ConvPool-CNN against Table 1 of the perturbation-generator paper."""

import torch
from torch import nn

from lightning_advdef.models import ConvPoolCNN

from .helpers import CIFAR, DIGITS, MNIST, count_parameters, images_of


def test_parameters_are_those_of_the_paper():
    assert count_parameters(ConvPoolCNN(CIFAR)) == 2_334_730
    assert count_parameters(ConvPoolCNN(CIFAR._replace(classes=100))) == 2_334_730 + 90 * (512 * 9 + 1)


def test_convolutions_are_those_of_the_paper():
    channels = [(layer.in_channels, layer.out_channels) for layer in convolutions(ConvPoolCNN(CIFAR))]
    assert channels == [(3, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 10)]


def test_maps_halve_after_every_second_convolution():
    network = ConvPoolCNN(CIFAR, width=2)
    sizes = []
    for layer in convolutions(network):
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[2]))
    network(images_of(CIFAR))
    assert sizes == [32, 32, 16, 16, 8, 8, 4]


def test_width_scales_all_filters():
    channels = [layer.out_channels for layer in convolutions(ConvPoolCNN(CIFAR, width=6))]
    assert channels == [6, 12, 12, 24, 24, 48, 10]


def test_pixels_are_taken_as_they_are():
    images = images_of(CIFAR)
    assert torch.equal(ConvPoolCNN(CIFAR, width=2).normalize(images), images)


def test_logits_are_the_mean_of_leaky_maps():
    network, images = ConvPoolCNN(DIGITS, width=2), images_of(DIGITS)
    maps = network.head.conv7(network.features(images))
    leaky = torch.where(maps > 0, maps, 0.2 * maps)
    torch.testing.assert_close(network(images), leaky.mean(dim=(2, 3)))


def test_odd_sizes_are_taken():
    assert ConvPoolCNN(MNIST, width=2)(images_of(MNIST)).shape == (2, 10)


def convolutions(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
