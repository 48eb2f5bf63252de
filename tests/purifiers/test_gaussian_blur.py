import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from lightning_advdef.purifiers import GaussianBlur
from tests.purifiers.helpers import apply, random_images, structured_images


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("images", [random_images(), structured_images()], ids=["random", "structured"])
def test_it_agrees_with_scipy(images, sigma):
    rows = gaussian_filter1d(images.double().numpy(), sigma, axis=2, mode="nearest")
    expected = gaussian_filter1d(rows, sigma, axis=3, mode="nearest")
    np.testing.assert_allclose(apply(GaussianBlur(sigma), images), expected, atol=1e-6)


def test_a_width_of_nothing_is_refused():
    with pytest.raises(ValueError, match="sigma above 0"):
        GaussianBlur(0.0)
