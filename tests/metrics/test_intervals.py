import pytest
import torch
from scipy.stats import binomtest

from lightning_advdef.metrics import mean_interval, normal_interval, wilson_interval


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "total"), [(0, 10), (1, 1), (3, 10), (500, 1000), (9999, 10000), (7, 7)])
def test_wilson_agrees_with_scipy(successes, total, confidence):
    expected = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    assert tuple(wilson_interval(successes, total, confidence)) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_of_the_textbook():
    # 1 of 10 successes: 0.0179 to 0.4042, e.g. statsmodels' proportion_confint(1, 10, method="wilson")
    assert tuple(wilson_interval(1, 10)) == pytest.approx((0.0178762, 0.4041500), abs=1e-6)


def test_ends_solve_the_score_equation():
    for share in wilson_interval(12.5, 40):
        assert abs(12.5 / 40 - share) == pytest.approx(1.959964 * (share * (1 - share) / 40) ** 0.5, rel=1e-6)


def test_no_trials_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_certain_ends_are_exact():
    assert wilson_interval(0, 9).low == 0.0
    assert wilson_interval(9, 9).high == 1.0


def test_wilson_is_symmetric():
    low, high = wilson_interval(3.25, 17)
    assert tuple(wilson_interval(17 - 3.25, 17)) == pytest.approx((1 - high, 1 - low))


def test_more_images_give_narrower_intervals():
    widths = [high - low for low, high in (wilson_interval(n * 0.3, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("arguments", [(-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0), (float("nan"), 5)])
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="0 <= successes <= total"):
        wilson_interval(*arguments)


def test_mean_interval_of_right_and_wrong_is_wilson():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert mean_interval(values) == wilson_interval(3, 4)
    assert mean_interval(values.bool()) == wilson_interval(3, 4)


def test_mean_interval_counts_images_not_draws():
    shares = torch.tensor([0.1, 0.9, 0.5])
    assert tuple(mean_interval(shares)) == pytest.approx(tuple(wilson_interval(1.5, 3)))


def test_mean_interval_covers_at_least_as_often_as_promised():
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(400, 50, generator=generator) ** 2  # mean 1/3
    intervals = [mean_interval(sample) for sample in samples]
    assert sum(low <= 1 / 3 <= high for low, high in intervals) >= 0.95 * 400


def test_mean_interval_without_images_says_nothing():
    assert mean_interval(torch.empty(0)) == (0.0, 1.0)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_mean_interval_refuses_values_outside_0_to_1(value):
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        mean_interval(torch.tensor([0.5, value]))


def test_normal_interval_is_the_mean_and_its_standard_error():
    low, high = normal_interval(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    half = 1.959964 * (14 / 3) ** 0.5 / 2
    assert (low, high) == pytest.approx((3 - half, 3 + half))


def test_normal_interval_of_one_value_says_nothing():
    assert normal_interval(torch.tensor([0.5])) == (-torch.inf, torch.inf)
