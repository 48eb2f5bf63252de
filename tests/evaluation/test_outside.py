"""Whether one curve lies outside another."""

import pytest

from lightning_advdef.evaluation.chart import Curve, Point
from lightning_advdef.evaluation.outside import compare, compare_all
from lightning_advdef.metrics import Interval


def curve(label, *points):
    return Curve(label, tuple(Point(x, y) for x, y in points))


def noisy(label, half, *points):
    return Curve(label, tuple(Point(x, y, "", Interval(x - half, x + half)) for x, y in points))


INNER = curve("inner", (0.2, 0.9), (0.6, 0.7))
OUTER = curve("outer", (0.5, 0.8), (0.7, 0.6))


def test_norms_are_compared_at_equal_accuracy_over_the_common_range():
    found = compare(OUTER, INNER)
    assert found.accuracies == pytest.approx((0.7, 0.8))
    assert found.first_norms == pytest.approx((0.6, 0.5))
    assert found.second_norms == pytest.approx((0.6, 0.4))
    assert found.differences == pytest.approx((0.0, 0.1))


def test_differences_turn_round_with_the_order():
    assert compare(INNER, OUTER).differences == pytest.approx((0.0, -0.1))


def test_a_bend_inside_the_range_is_seen():
    bent = curve("bent", (0.2, 0.9), (0.9, 0.8), (0.95, 0.7))
    assert compare(bent, INNER).differences == pytest.approx((0.35, 0.5, 0.0))


def test_a_run_that_another_of_its_method_beats_does_not_count():
    assert compare(curve("inner", (0.2, 0.9), (0.1, 0.8), (0.6, 0.7)), OUTER) == compare(INNER, OUTER)


def test_curves_of_different_accuracies_are_not_compared():
    low = curve("low", (0.9, 0.5))
    assert compare(INNER, low) is None
    assert "no clean accuracy in common" in compare_all((INNER, low))[0]


@pytest.mark.parametrize("order", [1, -1])
def test_the_outer_curve_is_named_first(order):
    outer = curve("far", (0.5, 0.9), (0.9, 0.7))
    (sentence,) = compare_all((outer, INNER)[::order])
    assert sentence.startswith("far lies outside inner: at 80.00% clean accuracy norm 0.700 against 0.400")
    assert sentence.endswith("from 70.00% to 90.00% +0.300 to +0.300")


def test_curves_that_cross_are_said_to():
    crossing = curve("crossing", (0.1, 0.9), (0.7, 0.7))
    (sentence,) = compare_all((crossing, INNER))
    assert sentence.startswith("neither of crossing and inner lies outside the other")
    assert sentence.endswith("-0.100 to +0.100")


@pytest.mark.parametrize(
    ("norm", "found"),
    [
        (0.46, "far lies outside near: "),
        (0.44, "far is ahead of near, but within the noise: "),
        (0.40, "neither of far and near lies outside the other: "),
    ],
)
def test_an_outer_curve_is_ahead_by_more_than_the_noise_of_both(norm, found):
    near = noisy("near", 0.03, (0.4, 0.8))
    far = noisy("far", 0.04, (norm, 0.8))
    (sentence,) = compare_all((far, near))
    assert sentence.startswith(found)


def test_noise_between_two_runs_lies_between_theirs():
    wide = Curve("wide", (Point(0.5, 0.8, "", Interval(0.4, 0.6)), Point(0.9, 0.6)))
    assert compare(wide, curve("one", (0.1, 0.7))).noise == pytest.approx((0.05,))
