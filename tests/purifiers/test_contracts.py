"""What every exported purifier promises."""

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_advdef.checkpoints import plain
from lightning_advdef.purifiers import Purifier, TotalVariation
from lightning_advdef.rng import SampleRNG
from tests.purifiers.helpers import ALL_SETTINGS, EXPORTED, SETTINGS, apply, random_images, structured_images


@pytest.fixture(params=ALL_SETTINGS, ids=str)
def purifier(request):
    return request.param


@pytest.fixture(params=[1, 3], ids=["gray", "colour"])
def images(request):
    channels = request.param
    return torch.cat([random_images(3, channels), structured_images(2, channels)])


@pytest.mark.parametrize("exported", EXPORTED)
def test_every_exported_purifier_has_settings_to_be_tested_with(exported):
    assert exported in SETTINGS, f"tell tests/purifiers/helpers.py the SETTINGS to test {exported.__name__} with"


def test_images_keep_shape_dtype_and_contiguity(purifier, images):
    found = apply(purifier, images)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert found.is_contiguous()


def test_no_images_are_purified_to_none(purifier):
    found = apply(purifier, random_images(0, 3))
    assert found.shape == random_images(0, 3).shape


def test_short_floats_give_nearly_the_same(purifier, images):
    images = images.bfloat16()
    found = apply(purifier, images)
    assert found.dtype == torch.bfloat16
    assert (found.float() - apply(purifier, images.float())).abs().mean() < 1e-2


def test_something_changes(purifier, images):
    assert not torch.equal(apply(purifier, images), images)


def test_the_images_of_the_caller_are_not_written_to(purifier, images):
    before = images.clone()
    apply(purifier, images)
    assert torch.equal(images, before)


def test_the_result_shares_no_memory_with_the_images(purifier, images):
    found = apply(purifier, images)
    before = images.clone()
    found.fill_(0.5)
    assert torch.equal(images, before)


def test_pixels_stay_in_range(purifier, images):
    found = apply(purifier, images)
    # the iterations of total variation end a trifle outside
    slack = 1e-2 if isinstance(purifier, TotalVariation) else 1e-6
    assert found.min() >= -slack
    assert found.max() <= 1 + slack


def test_an_image_is_purified_alone_as_in_a_batch(purifier, images):
    together = apply(purifier, images)
    rng = SampleRNG.for_images(torch.arange(len(images)), 0)
    for row in range(len(images)):
        alone = purifier(images[row : row + 1], rng[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-6)


def test_it_depends_on_random_numbers_exactly_if_it_says_so(purifier, images):
    first, again, other = (apply(purifier, images, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) != purifier.stochastic


@pytest.mark.parametrize("purifier", [each for each in ALL_SETTINGS if each.differentiable], ids=str)
def test_the_gradient_is_that_of_a_difference_where_it_is_promised(purifier, images):
    leaf = images[:1].double().requires_grad_()
    rng = SampleRNG.for_images(torch.arange(1), 0)
    direction = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((purifier(leaf, rng) * weights).sum(), leaf)
    with torch.no_grad():
        step = 1e-7 * direction
        difference = ((purifier(leaf + step, rng) - purifier(leaf - step, rng)) * weights).sum() / 2e-7
    assert difference.abs() > 0.1
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-4, atol=0)


def test_what_attackers_follow_has_the_value_of_the_purifier_and_a_gradient(purifier, images):
    leaf = images.clone().requires_grad_()
    found = purifier.with_gradient(leaf, SampleRNG.for_images(torch.arange(len(images)), 0))
    assert torch.equal(found, apply(purifier, images))
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).count_nonzero(dim=1) > 0).all()


@pytest.mark.parametrize("purifier", [each for each in ALL_SETTINGS if each.stand_in() is not None], ids=str)
def test_the_stand_in_has_the_shape_of_the_images_and_a_gradient(purifier, images):
    leaf = images.clone().requires_grad_()
    found = purifier.stand_in()(leaf)
    assert found.shape == images.shape
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_a_plain_description_builds_it_again(purifier):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--purifier", type=Purifier)
    description = parser.parse_object({"purifier": plain(purifier)})
    assert parser.instantiate_classes(description).purifier == purifier


@pytest.mark.parametrize("exported", EXPORTED)
def test_a_yaml_names_it_by_its_class_alone(exported):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--purifier", type=Purifier)
    settings = plain(SETTINGS[exported][0])["init_args"]
    found = parser.parse_object({"purifier": {"class_path": exported.__name__, "init_args": settings}})
    assert parser.instantiate_classes(found).purifier == SETTINGS[exported][0]
