import pytest
import torch

from lightning_advdef.attacks.smallest import Smallest

ROUNDS = [
    ([2.0, 1.0, 3.0], [True, False, True]),
    ([1.0, 0.5, 4.0], [True, False, True]),
    ([0.5, 2.0, 1.0], [False] * 3),
]
ALL = torch.arange(3)


@pytest.fixture
def best():
    best = Smallest(torch.zeros(3, 1, 2, 2), enough=1.0)
    for number, (sizes, fooled) in enumerate(ROUNDS, start=1):
        best.update(ALL, torch.full((3, 1, 2, 2), float(number)), torch.tensor(sizes), torch.tensor(fooled))
    return best


def test_the_smallest_that_fools_is_kept(best):
    assert best.sizes[[0, 2]].tolist() == [1.0, 3.0]
    assert best.images[[0, 2], 0, 0, 0].tolist() == [2.0, 1.0]


def test_where_nothing_fools_the_image_is_clean_and_its_size_infinite(best):
    assert best.sizes[1] == float("inf")
    assert not best.images[1].any()


def test_an_image_is_done_once_it_is_near_enough(best):
    assert best.done.tolist() == [True, False, False]


def test_only_the_rows_offered_change(best):
    best.update(ALL[2:], torch.full((1, 1, 2, 2), 9.0), torch.tensor([0.5]), torch.tensor([True]))
    assert best.images[:, 0, 0, 0].tolist() == [2.0, 0.0, 9.0]
    assert best.done.tolist() == [True, False, True]


def test_the_image_itself_is_no_perturbation(best):
    best.update(ALL, torch.full((3, 1, 2, 2), 9.0), torch.zeros(3), torch.ones(3, dtype=torch.bool))
    assert best.sizes.tolist() == [1.0, float("inf"), 3.0]
