"""The feature smoothing loss against its formula."""

import pytest
import torch

from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from tests.defenses.feature_smoothing.helpers import naive_loss

FEATURES = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_loss_is_the_papers_formula_for_each_image():
    expected = [naive_loss(features) for features in FEATURES]
    torch.testing.assert_close(feature_loss(FEATURES), torch.tensor(expected, dtype=torch.float64))


def test_the_mean_is_that_of_the_whole_cube_and_not_of_a_channel():
    flat_channels = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert feature_loss(flat_channels).tolist() == [1.0]


def test_flat_features_have_no_loss():
    assert feature_loss(torch.full((2, 3, 4, 4), 7.0)).tolist() == [0, 0]


def test_loss_knows_no_offset_and_scales():
    torch.testing.assert_close(feature_loss(3 * FEATURES + 5), 3 * feature_loss(FEATURES))


def test_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(feature_loss, FEATURES.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(feature_loss, FEATURES.clone().requires_grad_())


@pytest.mark.parametrize("shape", [(3, 40), (3, 4, 2, 5)])
def test_gradients_are_those_that_autograd_finds(shape):
    leaf = FEATURES.view(shape).clone().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    flat = leaf.flatten(1)
    plain = (flat - flat.mean(dim=1, keepdim=True)).abs().mean(dim=1)
    (expected,) = torch.autograd.grad(plain @ weights, leaf)
    (found,) = torch.autograd.grad(feature_loss(leaf) @ weights, leaf)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_keep_dtype_and_memory_format(dtype):
    leaf = FEATURES.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(feature_loss(leaf).sum(), leaf)
    assert gradient.dtype == dtype
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_no_images_have_no_loss():
    assert feature_loss(FEATURES[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    features = (1 + FEATURES / 50).to(dtype)
    found = feature_loss(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, feature_loss(features.double()).float(), rtol=1e-4, atol=0)


def test_vectors_have_a_loss_too():
    torch.testing.assert_close(feature_loss(FEATURES.flatten(1)), feature_loss(FEATURES))
