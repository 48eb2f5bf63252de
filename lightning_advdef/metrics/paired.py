"""Two models on the same images: the difference of their accuracies and whether it is more than chance."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from lightning_advdef.metrics.intervals import Interval, mean_interval

_SAME = 1e-4  # less than one draw of any sensible number, more than devices differ by in the mean of draws


class PairedDifference(NamedTuple):
    """How the first of two models does against the second on the same images.

    Attributes:
        value: Accuracy of the first minus that of the second, -1 to 1.
        interval: Its confidence interval over images.
        only_first: Number of images on which the first alone is right, or is right on more draws.
        only_second: The same of the second.
        p_value: Of McNemar's exact test: probability of a split at least as uneven as that of these images, if each
            were as likely to go either way.
    """

    value: float
    interval: Interval
    only_first: int
    only_second: int
    p_value: float


def paired_difference(first: Tensor, second: Tensor, confidence: float = 0.95) -> PairedDifference:
    """Compares two models image by image.

    Source of the test: McNemar, 1947, https://doi.org/10.1007/BF02295996, in its exact binomial form. Source of the
    interval: Newcombe, 1998, https://doi.org/10.1002/(SICI)1097-0258(19981130)17:22%3C2635::AID-SIM954%3E3.0.CO;2-C,
    method 8: Wilson's intervals of both accuracies, put together with the correlation phi of the answers. Unlike the
    normal approximation it does not shrink to a point where the models agree on every image, unless both are right on
    exactly half of them. Shares vary less than right-or-wrong answers do, so that their interval is rather too wide.

    Args:
        first: Whether the answers of the first model are right, 0 or 1, or the share of draws of a stochastic one on
            which they are, shape ``(N,)``.
        second: The same of the second model for the same images.
        confidence: Probability in (0, 1) with which such intervals hold the true difference.

    Raises:
        ValueError: If there are no images, or not the same number of both.
    """
    if first.shape != second.shape or first.ndim != 1 or first.numel() == 0:
        raise ValueError(
            f"a paired comparison needs two values of every image, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    from scipy.stats import binomtest

    first, second = first.double(), second.double()
    only_first, only_second = int(wins(first, second).sum()), int(wins(second, first).sum())
    split = only_first + only_second
    return PairedDifference(
        float((first - second).mean()),
        _interval(first, second, confidence),
        only_first,
        only_second,
        float(binomtest(only_first, split).pvalue) if split else 1.0,
    )


def wins(first: Tensor, second: Tensor) -> Tensor:
    """On which images the first is right on more draws, bool; not by what another device may make of the last bit."""
    return first.double() - second.double() > _SAME


def _interval(first: Tensor, second: Tensor, confidence: float) -> Interval:
    one, other = float(first.mean()), float(second.mean())
    of_first, of_second = mean_interval(first, confidence), mean_interval(second, confidence)
    correlation = _correlation(first, second)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 - 2 * correlation * a * b + b**2))

    return Interval(
        one - other - reach(one - of_first.low, of_second.high - other),
        one - other + reach(of_first.high - one, other - of_second.low),
    )


def _correlation(first: Tensor, second: Tensor) -> float:
    """Phi: covariance over what right-or-wrong answers of these means would vary; 0 where a mean is 0 or 1.

    Of answers of 0 and 1 this is Pearson's. Wilson's intervals are as wide as those of such answers even of shares, so
    that these must not count as more alike because they vary less.
    """
    one, other = first.mean(), second.mean()
    spread = float(one * (1 - one) * other * (1 - other))
    return float(((first - one) * (second - other)).mean()) / math.sqrt(spread) if spread > 0 else 0.0
