import math

import pytest
import torch

from lightning_advdef.metrics import norm_summary, relative_norm


def test_relative_norm_is_equation_7():
    perturbations, images = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([10.0, 10.0, 10.0])
    result = relative_norm(perturbations, images)
    assert result.mean == pytest.approx((0.1 + 0.2 + 0.9) / 3)
    assert result.median == pytest.approx(0.2)
    assert result.images == 3


def test_relative_norm_of_fooled_images_only():
    fooled = torch.tensor([True, True, False])
    result = relative_norm(torch.tensor([1.0, 2.0, 9.0]), torch.full((3,), 10.0), fooled)
    assert tuple(result) == pytest.approx((0.15, 0.15, 2))


def test_relative_norm_does_not_change_with_the_unit_of_pixels():
    perturbations, images = torch.rand(9), torch.rand(9) + 1
    scaled = relative_norm(255 * perturbations, 255 * images)
    assert tuple(scaled) == pytest.approx(tuple(relative_norm(perturbations, images)))


def test_black_images_have_no_relative_norm():
    assert relative_norm(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0])) == (0.5, 0.5, 1)


def test_relative_norm_of_nothing_is_nan():
    result = relative_norm(torch.empty(0), torch.empty(0))
    assert math.isnan(result.mean)
    assert math.isnan(result.median)
    assert result.images == 0


def test_summary_knows_both_conventions_and_the_infinite_one():
    norms = torch.tensor([0.0, 1.0, 2.0, 6.0, 7.0])
    fooled = torch.tensor([True, True, True, True, False])
    summary = norm_summary(norms, fooled)
    assert summary.mean_included == pytest.approx(9 / 4)
    assert summary.median_included == pytest.approx(1.5)
    assert summary.mean_excluded == pytest.approx(3)
    assert summary.median_excluded == pytest.approx(2)
    assert summary.median_all == pytest.approx(2)
    assert summary.broken == pytest.approx(0.8)
    assert summary.misclassified == pytest.approx(0.2)


def test_misclassified_images_count_with_norm_0_whatever_the_attack_did():
    # DeepFool starts misclassified images from the predicted class and moves them, or fails to
    norms, fooled = torch.tensor([5.0, 5.0, 1.0]), torch.tensor([True, False, True])
    summary = norm_summary(norms, fooled, misclassified=torch.tensor([True, True, False]))
    assert summary.mean_included == pytest.approx(1 / 3)
    assert summary.mean_excluded == pytest.approx(1)
    assert summary.broken == 1


@pytest.mark.parametrize(
    ("fooled", "expected"), [([1, 1, 0, 0], math.inf), ([0, 0, 0, 0], math.inf), ([1, 1, 1, 0], 2.5)]
)
def test_median_over_all_is_where_half_are_lost(fooled, expected):
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert norm_summary(norms, torch.tensor(fooled)).median_all == expected


def test_no_broken_image_gives_nan_means():
    summary = norm_summary(torch.ones(3), torch.zeros(3, dtype=torch.bool))
    assert math.isnan(summary.mean_included)
    assert math.isnan(summary.median_excluded)
    assert summary.broken == 0
