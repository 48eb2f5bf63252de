"""The U-Net of Table 6."""

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.data import get_spec
from lightning_advdef.models import InputDenoiser
from tests.defenses.adversarial_training.helpers import seeded_module

SETTINGS = [{"skip_from": skip, "residual_activation": last} for skip in (1, 2) for last in ("relu", "linear")]


def trained(spec="2x8x12x3", **settings):
    """As if it had been trained: statistics and weights of batch norm that are neither 0 nor 1."""
    denoiser = seeded_module(lambda: InputDenoiser(get_spec(spec), width=2, **settings))
    generator = torch.Generator().manual_seed(1)
    for layer in denoiser.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                values.uniform_(0.2, 0.8, generator=generator)
    return denoiser.eval()


def images_of(count=3):
    return torch.rand(count, 2, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_papers_denoiser_has_669033_parameters(settings):
    denoiser = InputDenoiser(get_spec("cifar10"), **settings)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == 669_033


def test_width_multiplies_the_filters_of_table_6():
    counts = [(layer[0].out_channels, layer[0].in_channels) for layer in InputDenoiser(get_spec("mnist")).children()]
    assert counts == [
        (32, 1), (32, 32), (64, 32), (64, 64), (128, 64), (192, 192), (64, 192), (96, 96), (1, 96)
    ]  # fmt: skip
    half = [
        (layer[0].out_channels, layer[0].in_channels) for layer in InputDenoiser(get_spec("mnist"), width=16).children()
    ]
    assert half[1:-1] == [(after // 2, before // 2) for after, before in counts[1:-1]]


@pytest.mark.parametrize("settings", SETTINGS)
def test_output_is_the_image_plus_what_table_6_makes_of_it(settings):
    denoiser, images = trained(**settings), images_of()

    def layer(number, maps, stride=1, relu=True):
        convolution, norm = getattr(denoiser, f"layer{number}")[:2]
        maps = F.conv2d(maps, convolution.weight, convolution.bias, stride=stride, padding=1)
        maps = (maps - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
        maps = maps * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        return maps.clamp(min=0) if relu else maps

    def doubled(maps):
        return torch.nn.UpsamplingBilinear2d(scale_factor=2)(maps)

    out = {1: layer(1, images)}
    out[2] = layer(2, out[1])
    out[4] = layer(4, layer(3, out[2], stride=2))
    out[5] = layer(5, out[4], stride=2)
    out[7] = layer(7, layer(6, torch.cat([out[4], doubled(out[5])], dim=1)))
    skip = out[settings["skip_from"]]
    last = layer(8, torch.cat([skip, doubled(out[7])], dim=1))
    residual = layer(9, last, relu=settings["residual_activation"] == "relu")
    torch.testing.assert_close(denoiser(images), images + residual)
    assert residual.abs().max() > 0.1


def test_relu_can_only_brighten():
    torch.manual_seed(0)
    denoiser = InputDenoiser(get_spec("2x8x12x3"), width=2, residual_activation="relu")
    assert (denoiser(images_of()) >= images_of()).all()
    assert (denoiser(images_of()) > images_of()).any()


def test_linear_correction_begins_at_nothing_and_can_leave_it():
    denoiser = InputDenoiser(get_spec("2x8x12x3"), width=2)
    assert torch.equal(denoiser(images_of()), images_of())
    denoiser(images_of()).square().sum().backward()
    assert denoiser.layer9[1].weight.grad.abs().max() > 0


def test_an_image_alone_is_denoised_as_in_a_batch():
    denoiser, images = trained(), images_of()
    torch.testing.assert_close(torch.cat([denoiser(image[None]) for image in images]), denoiser(images))


@pytest.mark.parametrize("spec", ["1x10x8x2", "1x8x299x2"])
def test_sides_that_four_does_not_divide_are_refused(spec):
    with pytest.raises(ValueError, match="height and width in multiples of 4"):
        InputDenoiser(get_spec(spec))


@pytest.mark.parametrize("settings", [{"width": 0}, {"skip_from": 3}, {"residual_activation": "tanh"}])
def test_unknown_settings_are_refused(settings):
    with pytest.raises(ValueError, match="InputDenoiser needs"):
        InputDenoiser(get_spec("mnist"), **settings)
