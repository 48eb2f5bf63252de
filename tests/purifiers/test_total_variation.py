import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from skimage.restoration import denoise_tv_bregman, denoise_tv_chambolle

from lightning_advdef.purifiers import TotalVariation
from lightning_advdef.rng import SampleRNG
from tests.purifiers.helpers import apply, random_images, structured_images

METHODS = ["chambolle", "split_bregman"]


def by_library(channel, method, weight):
    if method == "chambolle":
        return denoise_tv_chambolle(channel, weight=weight)
    return denoise_tv_bregman(channel, weight=1 / weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [random_images, structured_images])
def test_it_is_that_of_scikit_image(make, channels, method):
    images = make(3, channels)
    expected = [[by_library(channel, method, 0.2) for channel in image] for image in images.numpy()]
    np.testing.assert_allclose(apply(TotalVariation(0.2, method), images), np.array(expected), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_more_weight_is_smoother(method):
    images = random_images()
    spreads = [float(apply(TotalVariation(weight, method), images).std()) for weight in (0.01, 0.1, 1.0)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.5 * spreads[0]


@pytest.mark.parametrize("method", METHODS)
def test_dropped_pixels_of_a_flat_image_come_back(method):
    images = torch.full((1, 3, 12, 16), 0.7)
    torch.testing.assert_close(apply(TotalVariation(0.1, method, keep=0.5), images), images, rtol=0, atol=1e-2)


def total(image, values, kept, weight):
    """What is minimised for one channel, with root of squares plus a trifle for the length of a gradient."""
    image = image.reshape(values.shape)
    down, right = np.zeros_like(image), np.zeros_like(image)
    down[:-1], right[:, :-1] = np.diff(image, axis=0), np.diff(image, axis=1)
    variation = np.sqrt(down**2 + right**2 + 1e-9).sum()
    return 0.5 * (np.square(image - values) * kept).sum() + weight * variation


def test_dropped_pixels_are_free_in_what_is_minimised():
    images = structured_images(1, 1, 6, 7)
    kept = SampleRNG.for_images(torch.arange(1)).stream("keep").uniform(1, 6, 7) < 0.6
    values, mask = images[0, 0].double().numpy(), kept[0, 0].numpy()
    best = minimize(total, np.full(42, 0.5), (values, mask, 0.05), method="L-BFGS-B", options={"maxfun": 50_000}).fun
    found = apply(TotalVariation(0.05, keep=0.6, rounds=100), images)[0, 0].double().numpy()
    assert total(found, values, mask, 0.05) < 1.03 * best
    assert total(values * mask, values, mask, 0.05) > 2 * best, "zeros in their place are far from it"


def test_about_the_share_to_keep_is_kept():
    images = random_images(1, 1, 50, 50)
    changed = apply(TotalVariation(1e-4, keep=0.8), images) - images
    assert (changed.abs() < 1e-2).float().mean() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"rounds": 0}, {"keep": 0.0}, {"keep": 1.0}])
def test_other_numbers_are_refused(settings):
    with pytest.raises(ValueError, match=r"above 0|between 0 and 1"):
        TotalVariation(**settings)
