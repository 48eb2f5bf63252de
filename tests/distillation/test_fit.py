import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.distillation import Pairs, fit
from lightning_advdef.distillation.fit import mean_error, solve, split
from lightning_advdef.models import StandIn

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(3, 20, 2, 8, 8, generator=GENERATOR)
KERNEL = torch.tensor([1.0, 4, 6, 4, 1])


def blur(images):
    weight = (torch.outer(KERNEL, KERNEL) / 256).expand(images.shape[1], 1, 5, 5)
    return F.conv2d(images, weight, padding=2, groups=images.shape[1])


def bent(images):
    return (images - 0.5).abs()


def pairs_of(purify, images=IMAGES):
    return Pairs(images, torch.stack([purify(version) for version in images]))


def pulled_back(function, cotangents):
    leaf = torch.rand(20, 2, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, cotangents)[0]


def test_the_vector_jacobian_product_of_a_blur_is_found():
    cotangents = torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    found, expected = (
        pulled_back(function, cotangents) for function in (fit(pairs_of(blur), epochs=3, width=4).stand_in, blur)
    )
    assert F.cosine_similarity(found.flatten(1), expected.flatten(1)).min() > 0.99
    assert F.cosine_similarity(cotangents.flatten(1), expected.flatten(1)).max() < 0.8


def test_least_squares_find_a_linear_purifier_alone():
    network = StandIn(2, width=3)
    solve(network.linear, Pairs(IMAGES[0], 0.2 + blur(IMAGES[0])), "cpu")
    other = torch.rand(4, 2, 8, 8, generator=GENERATOR)
    torch.testing.assert_close(network(other), 0.2 + blur(other), rtol=0, atol=1e-3)


def test_least_squares_keep_the_identity_where_images_tell_nothing():
    network, flat = StandIn(2, width=3), torch.zeros(4, 2, 8, 8)
    solve(network.linear, Pairs(flat, flat), "cpu")
    torch.testing.assert_close(network(IMAGES[0]), IMAGES[0])


def test_what_is_not_linear_is_left_to_the_network():
    flat, errors = torch.rand(3, 100, 1, 1, 1, generator=GENERATOR).expand(-1, -1, -1, 4, 4), []
    found = fit(pairs_of(bent, flat), 20, width=8, report=lambda *numbers: errors.append(numbers))
    assert [epoch for epoch, *_ in errors] == list(range(21))
    assert errors[-1] == (20, found.error, found.identity_error)
    assert found.error < 0.3 * errors[0][1] < 0.1 * found.identity_error


def test_errors_are_those_of_held_out_images():
    purified = IMAGES.clone()
    purified[:, :18] += 0.5
    found = fit(Pairs(IMAGES, purified), epochs=1, width=2)
    assert found.identity_error == 0
    assert found.error == pytest.approx(0.25, abs=0.05)


def test_a_tenth_of_the_images_is_held_out_in_all_versions():
    own, held_out = split(Pairs(IMAGES, -IMAGES))
    assert own.images.shape == (54, 2, 8, 8)
    assert torch.equal(held_out.images, IMAGES[:, 18:].flatten(0, 1))
    assert torch.equal(held_out.purified, -held_out.images)


def test_the_error_is_the_mean_over_all_pixels():
    own, _ = split(pairs_of(blur))
    expected = F.mse_loss(own.images, own.purified).item()
    assert mean_error(StandIn(2, width=2), own, "cpu") == pytest.approx(expected)


def test_it_repeats_and_leaves_torchs_own_generator_alone():
    state = torch.get_rng_state()
    first, second = (fit(pairs_of(bent), epochs=1, width=2).stand_in.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_two_images_are_enough_and_one_is_not():
    fit(pairs_of(blur, IMAGES[:, :2]), epochs=1, width=2)
    with pytest.raises(ValueError, match="give at least 2, got 1"):
        fit(pairs_of(blur, IMAGES[:, :1]))
