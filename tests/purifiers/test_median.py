import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter

from lightning_advdef.purifiers import Median
from tests.purifiers.helpers import apply, random_images, structured_images

own = Median._filtered
MODES = {"zeros": {"mode": "constant", "cval": 0.0}, "mirror": {"mode": "reflect"}}


@pytest.mark.parametrize("kernel", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("padding", MODES)
@pytest.mark.parametrize("images", [random_images(), structured_images()], ids=["random", "structured"])
def test_it_agrees_with_scipy(images, padding, kernel):
    expected = median_filter(images.numpy(), size=(1, 1, kernel, kernel), **MODES[padding])
    np.testing.assert_array_equal(apply(Median(kernel, padding), images), expected)


def test_a_window_larger_than_the_image_is_mirrored_again():
    images = random_images(2, 1, 3, 4)
    expected = median_filter(images.numpy(), size=(1, 1, 9, 9), mode="reflect")
    np.testing.assert_array_equal(apply(Median(9, "mirror"), images), expected)


def test_the_bound_on_memory_changes_no_bit(monkeypatch):
    images, filtered = random_images(5, 3), []
    monkeypatch.setattr(Median, "_filtered", lambda self, some: filtered.append(len(some)) or own(self, some))
    whole = apply(Median(3), images)
    monkeypatch.setattr("lightning_advdef.purifiers.median._WINDOW_VALUES", 2 * images[0].numel() * 9 + 1)
    assert torch.equal(apply(Median(3), images), whole)
    assert filtered == [5, 2, 2, 1]


def test_an_image_above_the_bound_is_filtered_alone(monkeypatch):
    images = random_images(2)
    whole = apply(Median(3), images)
    monkeypatch.setattr("lightning_advdef.purifiers.median._WINDOW_VALUES", 1)
    assert torch.equal(apply(Median(3), images), whole)


def test_the_gradient_keeps_one_place_a_pixel():
    images, kept = random_images(2, 1).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        apply(Median(5), images)
    places = [saved for saved in kept if saved.dtype == torch.int64]
    assert sum(saved.numel() for saved in places) == images.numel()


def test_a_single_bright_pixel_vanishes():
    images = torch.zeros(1, 1, 7, 7)
    images[0, 0, 3, 3] = 1
    assert not apply(Median(3), images).any()


def test_corners_are_black_beside_zeros():
    assert apply(Median(3), torch.ones(1, 1, 5, 5))[0, 0, 0, 0] == 0
    assert apply(Median(3, "mirror"), torch.ones(1, 1, 5, 5)).all()


def test_a_window_of_one_pixel_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Median(1)
