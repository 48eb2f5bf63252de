"""Confidence intervals of shares."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


def wilson_interval(successes: float, total: int, confidence: float = 0.95) -> Interval:
    """Confidence interval of a share, by the score test.

    Source: Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953. It stays inside [0, 1], and does not shrink
    to a point when all or none succeed.

    Args:
        successes: Number of successes, 0 to ``total``; may be fractional, see ``mean_interval``.
        total: Number of trials; 0 gives the interval (0, 1).
        confidence: Probability in (0, 1) with which such intervals hold the true share.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 0 <= successes <= total or not 0 < confidence < 1:
        raise ValueError(
            "an interval needs 0 <= successes <= total and 0 < confidence < 1, "
            f"got successes={successes}, total={total}, confidence={confidence}"
        )
    if total == 0:
        return Interval(0.0, 1.0)
    share = successes / total
    square = NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / total
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    # the ends are exactly 0 and 1 there, and rounding must not say otherwise
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == total else min(1.0, center + half)
    return Interval(low, high)


def mean_interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Confidence interval, over images, of the mean of per-image values in [0, 1].

    For a stochastic defense the value of an image is the share of draws with the right answer: draws of one image are
    not independent trials, so the images are the sample. Wilson's interval with the fractional sum of the values is
    used. Values in [0, 1] vary at most as much as right-or-wrong answers of the same mean do, so the interval is never
    too narrow on that account; for values of 0 and 1 it is exactly Wilson's.

    Args:
        values: One value per image, shape ``(N,)``; ``N = 0`` gives (0, 1).
        confidence: Probability in (0, 1) with which such intervals hold the true mean.

    Raises:
        ValueError: If a value is outside [0, 1] or NaN.
    """
    values = values.double()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"an interval of a mean needs values in [0, 1], got {values.min()} to {values.max()}")
    # a sum of shares may exceed the number of images by rounding
    return wilson_interval(min(float(values.sum()), values.numel()), values.numel(), confidence)


def normal_interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Confidence interval of the mean of values of any size, by the normal approximation.

    Args:
        values: One value per image, shape ``(N,)``; fewer than two give an infinite interval.
        confidence: Probability in (0, 1) with which such intervals hold the true mean, for many images.
    """
    values = values.double()
    if values.numel() < 2:
        return Interval(-math.inf, math.inf)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * float(values.std()) / math.sqrt(values.numel())
    mean = float(values.mean())
    return Interval(mean - half, mean + half)
