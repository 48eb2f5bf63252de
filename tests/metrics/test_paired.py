import itertools
import math

import pytest
import torch
from scipy.stats import binom, binomtest

from lightning_advdef.metrics import normal_interval, paired_difference, wilson_interval


def answers(both, only_first, only_second, neither):
    """Answers of two models with these counts."""
    first = torch.tensor([1.0] * both + [1.0] * only_first + [0.0] * only_second + [0.0] * neither)
    second = torch.tensor([1.0] * both + [0.0] * only_first + [1.0] * only_second + [0.0] * neither)
    return first, second


def test_mcnemar_of_the_textbook():
    # 1 against 9: twice the probability of at most 1 head in 10 throws, 2 * 11 / 1024
    found = paired_difference(*answers(50, 1, 9, 40))
    assert (found.only_first, found.only_second) == (1, 9)
    assert found.p_value == pytest.approx(22 / 1024)
    assert found.value == pytest.approx(-0.08)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (3, 3), (15, 5), (0, 40), (200, 150)])
def test_mcnemar_is_the_sign_test_on_the_images_that_differ(only_first, only_second):
    p_value = paired_difference(*answers(10, only_first, only_second, 10)).p_value
    assert p_value == pytest.approx(binomtest(only_first, only_first + only_second).pvalue)


def test_models_that_always_agree_do_not_differ_but_leave_room():
    found = paired_difference(*answers(30, 0, 0, 10))
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.interval.low == pytest.approx(-found.interval.high)
    perfect = paired_difference(*answers(40, 0, 0, 0)).interval
    assert perfect.high == pytest.approx(1 - wilson_interval(40, 40).low)


@pytest.mark.parametrize("table", [(60, 15, 5, 20), (0, 3, 8, 2), (5, 0, 7, 0), (400, 30, 10, 60)])
def test_interval_is_newcombes_method_8(table):
    both, only_first, only_second, neither = table
    total = sum(table)
    one, other = both + only_first, both + only_second
    (low_1, high_1), (low_2, high_2) = wilson_interval(one, total), wilson_interval(other, total)
    margins = one * (total - one) * other * (total - other)
    phi = (both * neither - only_first * only_second) / math.sqrt(margins) if margins else 0.0
    p_1, p_2 = one / total, other / total
    low = (p_1 - low_1) ** 2 - 2 * phi * (p_1 - low_1) * (high_2 - p_2) + (high_2 - p_2) ** 2
    high = (high_1 - p_1) ** 2 - 2 * phi * (high_1 - p_1) * (p_2 - low_2) + (p_2 - low_2) ** 2
    expected = (p_1 - p_2 - math.sqrt(low), p_1 - p_2 + math.sqrt(high))
    assert tuple(paired_difference(*answers(*table)).interval) == pytest.approx(expected)


def test_interval_of_few_images_holds_the_truth_in_19_of_20_experiments():
    # exact, over all outcomes of 12 images of which 60% both get right, 20% the first alone, 5% the second alone
    shares, total, covered = (0.6, 0.2, 0.05, 0.15), 12, 0.0
    for both, only_first, only_second in itertools.product(range(total + 1), repeat=3):
        neither = total - both - only_first - only_second
        if neither < 0:
            continue
        chance = binom.pmf(both, total, shares[0])
        chance *= binom.pmf(only_first, total - both, shares[1] / 0.4)
        chance *= binom.pmf(only_second, total - both - only_first, shares[2] / 0.2)
        low, high = paired_difference(*answers(both, only_first, only_second, neither)).interval
        covered += chance * (low <= 0.15 <= high)
    assert 0.93 < covered < 0.99


def test_many_images_give_the_normal_interval():
    first, second = answers(6000, 900, 500, 2600)
    found = paired_difference(first, second).interval
    assert tuple(found) == pytest.approx(tuple(normal_interval(first - second)), abs=2e-4)


def test_shares_count_as_no_more_alike_than_answers_that_vary_as_their_intervals_do():
    first, second = torch.tensor([1.0] * 50 + [0.0] * 50), torch.tensor([0.8] * 50 + [0.1] * 50)
    low, high = paired_difference(first, second).interval
    narrow = normal_interval(first - second)
    assert low < narrow.low < narrow.high < high


def test_swapping_the_models_mirrors_everything():
    first, second = answers(20, 9, 4, 7)
    found, swapped = paired_difference(first, second), paired_difference(second, first)
    assert tuple(swapped.interval) == pytest.approx((-found.interval.high, -found.interval.low))
    assert (swapped.only_first, swapped.p_value) == (found.only_second, found.p_value)


def test_of_draws_the_larger_share_wins():
    found = paired_difference(torch.tensor([0.9, 0.5, 1.0]), torch.tensor([0.8, 0.6, 1.0]))
    assert (found.only_first, found.only_second) == (1, 1)
    assert found.value == pytest.approx(0.0, abs=1e-7)


def test_the_last_bit_of_a_mean_over_draws_wins_nothing():
    found = paired_difference(torch.tensor([0.3, 0.7]), torch.tensor([0.3 + 3e-8, 0.7 - 6e-8]))
    assert (found.only_first, found.only_second, found.p_value) == (0, 0, 1.0)


@pytest.mark.parametrize(("first", "second"), [([1.0], [1.0, 0.0]), ([], [])])
def test_images_must_be_the_same(first, second):
    with pytest.raises(ValueError, match="two values of every image"):
        paired_difference(torch.tensor(first), torch.tensor(second))
