import pytest
import torch

from lightning_advdef.attacks.smallest import SmallestFooled

ROUNDS = [
    ([2.0, 1.0, 3.0], [True, False, True]),
    ([1.0, 0.5, 4.0], [True, False, True]),
    ([0.5, 2.0, 1.0], [False] * 3),
]


@pytest.fixture
def best():
    best = SmallestFooled(torch.zeros(3, 1, 2, 2))
    for number, (sizes, fooled) in enumerate(ROUNDS, start=1):
        best.update(torch.full((3, 1, 2, 2), float(number)), torch.tensor(sizes), torch.tensor(fooled))
    return best


def test_the_smallest_that_fools_is_kept(best):
    assert best.sizes[[0, 2]].tolist() == [1.0, 3.0]
    assert best.images[[0, 2], 0, 0, 0].tolist() == [2.0, 1.0]


def test_where_nothing_fools_the_image_is_clean_and_its_size_infinite(best):
    assert best.sizes[1] == float("inf")
    assert not best.images[1].any()
