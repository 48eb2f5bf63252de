import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.purifiers import RandomResizePad
from lightning_advdef.rng import SampleRNG
from tests.purifiers.helpers import apply, random_images

COUNT = 400


def boxes(height, width, **settings):
    """Upper, lower, left and right end of the copy in each of many purified white images."""
    found = apply(RandomResizePad(**settings), torch.ones(COUNT, 1, height, width)).squeeze(1).bool()
    rows, columns = found.any(dim=2).int(), found.any(dim=1).int()
    assert torch.equal(found, (rows.unsqueeze(2) * columns.unsqueeze(1)).bool()), "a rectangle"
    ends = [(side.argmax(dim=1), side.argmax(dim=1) + side.sum(dim=1)) for side in (rows, columns)]
    return [end for pair in ends for end in pair]


def test_the_copy_is_torchs_nearest_resizing():
    images = random_images(COUNT, 2, 20, 20) + 0.01
    purified = apply(RandomResizePad(0.5), images)
    upper, lower, left, right = boxes(20, 20, smallest=0.5)
    for row in range(COUNT):
        inner = purified[row, :, upper[row] : lower[row], left[row] : right[row]]
        expected = F.interpolate(images[row : row + 1], inner.shape[1:], mode="nearest")[0]
        assert torch.equal(inner, expected)


def test_sizes_are_those_of_the_paper():
    upper, lower, _, _ = boxes(331, 2)
    assert set((lower - upper).tolist()) == set(range(299, 331))


def test_a_square_stays_square():
    upper, lower, left, right = boxes(20, 20, smallest=0.5)
    assert torch.equal(lower - upper, right - left)


def test_every_place_is_taken():
    upper, lower, left, _ = boxes(20, 20, smallest=0.85)
    taken = {(size, place) for size, place in zip((lower - upper).tolist(), upper.tolist(), strict=True)}
    assert taken == {(size, place) for size in (17, 18, 19) for place in range(20 - size + 1)}
    assert not torch.equal(upper, left), "rows and columns are placed independently"


def test_both_sides_of_a_long_image_shrink_alike():
    upper, lower, left, right = boxes(20, 40, smallest=0.5)
    assert ((right - left) - 2 * (lower - upper)).abs().max() <= 2


def test_images_of_two_pixels_still_move():
    assert RandomResizePad()(torch.ones(1, 1, 2, 2), SampleRNG.default(torch.ones(1, 1, 2, 2))).sum() == 1


@pytest.mark.parametrize("smallest", [0.0, 1.0])
def test_other_shares_are_refused(smallest):
    with pytest.raises(ValueError, match="between 0 and 1"):
        RandomResizePad(smallest)
