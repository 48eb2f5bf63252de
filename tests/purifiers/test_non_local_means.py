import numpy as np
import pytest
import torch
from skimage.restoration import denoise_nl_means

from lightning_advdef.purifiers import NonLocalMeans
from tests.purifiers.helpers import apply, random_images, structured_images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [random_images, structured_images])
def test_it_is_that_of_scikit_image(make, channels):
    images = make(3, channels)
    options = {"patch_size": 3, "patch_distance": 5, "h": 40 / 255}
    if channels == 1:
        expected = [denoise_nl_means(image[0], **options)[np.newaxis] for image in images.numpy()]
    else:
        expected = [denoise_nl_means(image, channel_axis=0, **options) for image in images.numpy()]
    found = apply(NonLocalMeans(search=11, strength=40.0), images)
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)


def test_a_flat_image_stays_flat():
    images = torch.full((1, 3, 10, 10), 0.3)
    torch.testing.assert_close(apply(NonLocalMeans(), images), images)


def test_more_strength_smooths_more():
    images = random_images()
    spreads = [float(apply(NonLocalMeans(strength=strength), images).std()) for strength in (2.0, 40.0, 200.0)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.5 * spreads[0]


@pytest.mark.parametrize("settings", [{"search": 12}, {"patch": 2}, {"strength": 0.0}])
def test_other_settings_are_refused(settings):
    with pytest.raises(ValueError, match="odd search and patch"):
        NonLocalMeans(**settings)
