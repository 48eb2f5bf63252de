"""The larger U-Net of the notebooks."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_advdef.data import get_spec
from lightning_advdef.models import BlockDenoiser
from tests.defenses.adversarial_training.helpers import seeded_module

CIFAR = [
    *[(3, 64), (64, 64)],
    *[(64, 128), (128, 128), (128, 128)],
    *[(128, 256), (256, 256), (256, 256)],
    *[(256, 256), (256, 256), (256, 256)],
    *[(512, 256), (256, 256), (256, 256)],
    *[(384, 128), (128, 128), (128, 128)],
    *[(192, 64), (64, 64)],
]
MNIST = [
    *[(1, 32), (32, 32)],
    *[(32, 64), (64, 64), (64, 64)],
    *[(64, 128), (128, 128), (128, 128)],
    *[(192, 64), (64, 64), (64, 64)],
    *[(96, 32), (32, 32)],
]


@pytest.mark.parametrize(
    ("spec", "settings", "layers", "total"),
    [("cifar10", {}, CIFAR, 6_905_475), ("mnist", {"widths": [32, 64, 128]}, MNIST, 694_209)],
)
def test_parameters_are_those_of_the_notebooks_convolutions(spec, settings, layers, total):
    denoiser = BlockDenoiser(get_spec(spec), **settings)
    with_norm = sum(9 * before * after + 3 * after for before, after in layers)
    last = layers[-1][1] * layers[0][0] + layers[0][0]
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == with_norm + last == total


def small(widths=(2, 3, 4), spec="2x8x12x3"):
    return seeded_module(functools.partial(BlockDenoiser, get_spec(spec), widths=widths)).eval()


def images_of(count=3):
    return torch.rand(count, 2, 8, 12, generator=torch.Generator().manual_seed(0))


def test_the_correction_begins_at_zero():
    assert torch.equal(small()(images_of()), images_of())


def test_each_resolution_is_joined_by_the_one_below():
    denoiser, images = small(), images_of()
    nn.init.normal_(denoiser.last.weight)

    def block(layers, maps, stride=1):
        for convolution in (layer for layer in layers if isinstance(layer, nn.Conv2d)):
            maps = F.conv2d(maps, convolution.weight, stride=stride, padding=1)
            maps, stride = (maps / (1 + 1e-5) ** 0.5).clamp(min=0), 1
        return maps

    def joined(maps, lower):
        return torch.cat([maps, nn.UpsamplingBilinear2d(scale_factor=2)(lower)], dim=1)

    full = block(denoiser.down[0], images)
    half = block(denoiser.down[1], full, stride=2)
    quarter = block(denoiser.down[2], half, stride=2)
    half = block(denoiser.up[1], joined(half, quarter))
    full = block(denoiser.up[0], joined(full, half))
    expected = F.conv2d(full, denoiser.last.weight)
    torch.testing.assert_close(denoiser.residual(images), expected)
    torch.testing.assert_close(denoiser(images), images + expected)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("widths", [[], [0, 2]])
def test_widths_below_one_are_refused(widths):
    with pytest.raises(ValueError, match="BlockDenoiser needs widths of at least 1"):
        small(widths)


def test_sides_that_do_not_halve_evenly_are_refused():
    with pytest.raises(ValueError, match="BlockDenoiser needs height and width in multiples of 8"):
        small((2, 2, 2, 2))
