import torch

from lightning_advdef.data.partition import carve_validation, choose


def test_parts_are_disjoint_and_complete():
    train, val = carve_validation(1000, 0.1)
    assert len(val) == 100
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(1000))


def test_split_is_the_same_for_everyone():
    # written down once: other numbers would break comparisons with earlier runs
    assert carve_validation(50, 0.1)[1].tolist() == [1, 3, 5, 30, 41]


def test_every_fraction_above_zero_gives_an_image():
    assert len(carve_validation(5, 0.01)[1]) == 1
    assert len(carve_validation(5, 0.0)[1]) == 0


def test_smaller_choice_is_part_of_a_larger_one():
    indices = torch.arange(1000)
    few, many = choose(indices, 50), choose(indices, 200)
    assert len(few) == 50
    assert set(few.tolist()) < set(many.tolist())
    assert torch.equal(few, few.sort().values)


def test_choice_is_not_the_first_images():
    assert choose(torch.arange(1000), 50).max() > 900


def test_limit_beyond_the_images_takes_all():
    indices = torch.arange(10)
    assert torch.equal(choose(indices, 99), indices)
    assert torch.equal(choose(indices, None), indices)
