"""The perturbation generator against Table 1 and Eq. 5 of its paper."""

import pytest
import torch
from torch import nn

from lightning_advdef.models import PerturbationGenerator
from lightning_advdef.models.perturbation_generator import join

from .helpers import CIFAR, DIGITS, MNIST, count_parameters, images_of


def small(spec=DIGITS, **settings):
    torch.manual_seed(0)
    return PerturbationGenerator(spec, width=4, hidden=8, **settings)


def inputs_of(spec=DIGITS, count=3):
    return images_of(spec, count), torch.arange(count) % spec.classes, images_of(spec, count, seed=1) - 0.5


def test_parameters_are_those_of_the_paper():
    dense = (10 * 1024 + 1024) + (1034 * 8192 + 8192)
    convolutions = 2 * (138 * 128 * 9 + 128) + (134 * 128 * 9 + 128) + (128 * 3 * 9 + 3)
    assert count_parameters(PerturbationGenerator(CIFAR)) == dense + convolutions == 8_966_147


def test_maps_grow_from_8x8_to_the_image():
    generator, sizes = PerturbationGenerator(CIFAR, width=2, hidden=4), []
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, inputs, output: sizes.append((inputs[0].shape[2], output.shape[2])))
    generator(*inputs_of(CIFAR))
    assert sizes == [(8, 16), (16, 32), (32, 32), (32, 32)]


def test_images_are_those_of_equation_5():
    generator = small().double()
    images, labels, gradient = (tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs_of())
    images = images.float().double()
    output = generator.perturbation(images, labels, gradient)
    expected = 0.5 * (torch.tanh(torch.atanh((2 * images - 1) * 0.999999) + output) + 1)
    torch.testing.assert_close(generator(images, labels, gradient).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("reach", [0.9, 0.999999])
def test_no_output_gives_the_images_back(reach):
    generator = small(reach=reach)
    nn.init.zeros_(generator.conv2.weight)
    images, labels, gradient = inputs_of()
    torch.testing.assert_close(generator(images, labels, gradient), images, atol=1e-5, rtol=0)


def test_adversarial_images_are_pixels_also_under_autocast_and_from_black_and_white():
    generator = small()
    images, labels, gradient = inputs_of()
    images[0], images[1] = 0, 1
    for dtype in (torch.bfloat16, None):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            adversarial = generator(images, labels, 1e6 * gradient)
        assert adversarial.dtype == torch.float32
        assert adversarial.isfinite().all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


def test_autocast_keeps_maps_in_its_dtype():
    generator, dtypes = small(), []
    for layer in (*generator.up, generator.conv1, generator.conv2):
        layer.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        generator(*inputs_of())
    assert dtypes == [torch.bfloat16] * 4


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_joined_maps_keep_dtype_and_memory_format_of_the_first(layout):
    maps = torch.rand(2, 4, 3, 5, dtype=torch.bfloat16).contiguous(memory_format=layout)
    other = torch.rand(2, 2, 3, 5)
    joined = join(maps, other)
    assert joined.dtype == torch.bfloat16
    assert joined.is_contiguous(memory_format=layout)
    assert torch.equal(joined, torch.cat([maps, other.bfloat16()], dim=1))


def test_black_pixels_move_with_less_reach_alone():
    images, labels, gradient = torch.zeros(2, *DIGITS.shape), torch.arange(2), torch.ones(2, *DIGITS.shape)
    moved = {reach: small(reach=reach)(images, labels, gradient).max() for reach in (0.9, 0.999999)}
    assert moved[0.9] > 0.01
    assert moved[0.999999] < 1e-4


@pytest.mark.parametrize("dropped", ["gradient", "image", "label"])
def test_dropped_input_is_not_seen_and_all_others_are(dropped):
    generator = small(inputs=[name for name in ("gradient", "image", "label") if name != dropped])
    images, labels, gradient = inputs_of()
    usual = generator.perturbation(images, labels, gradient)
    changed = {
        "image": generator.perturbation(1 - images, labels, gradient),
        "label": generator.perturbation(images, labels + 1, gradient),
        "gradient": generator.perturbation(images, labels, -gradient),
    }
    assert {name for name, output in changed.items() if torch.equal(output, usual)} == {dropped}


def test_normalised_gradient_has_no_scale_and_may_be_zero():
    generator = small(normalize_gradient=True)
    images, labels, gradient = inputs_of()
    output = generator.perturbation(images, labels, gradient)
    torch.testing.assert_close(generator.perturbation(images, labels, 1e-20 * gradient), output)
    assert generator(images, labels, 0 * gradient).isfinite().all()


def test_gradient_scale_is_a_factor_on_the_gradient():
    images, labels, gradient = inputs_of()
    scaled = small(gradient_scale=1 / 128).perturbation(images, labels, 128 * gradient)
    torch.testing.assert_close(scaled, small().perturbation(images, labels, gradient))


def test_a_larger_image_takes_more_upsamplings():
    generator = small(CIFAR, upsamplings=3)
    assert generator.seed_shape == (4, 4, 4)
    assert generator(*inputs_of(CIFAR)).shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": ["noise"]}, "gradient, image, label"),
        ({"reach": 1.0}, "reach"),
        ({"spec": MNIST._replace(height=30)}, "multiples of 4"),
        ({"spec": MNIST, "upsamplings": 3}, "multiples of 8"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)
