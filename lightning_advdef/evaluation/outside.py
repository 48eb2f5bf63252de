"""Whether one robustness curve lies outside another: more norm at equal clean accuracy, by more than the noise."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from lightning_advdef.evaluation.chart import Curve, Point, front


class Comparison(NamedTuple):
    """Two curves at equal accuracy, at every accuracy at which one of them bends.

    Between two of these the difference is linear, so that its extremes are among them.

    Attributes:
        first: Label of one curve.
        second: Label of the other.
        accuracies: Ascending, from end to end of the range that both cover.
        first_norms: Norm of the first curve at each.
        second_norms: Norm of the second.
        noise: Half the 95% interval of their difference: the root of the sum of the squares of both curves' own, over
            images; between two runs these are linear, too.
    """

    first: str
    second: str
    accuracies: tuple[float, ...]
    first_norms: tuple[float, ...]
    second_norms: tuple[float, ...]
    noise: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Norm of the first curve minus that of the second; positive where the first lies outside."""
        return tuple(float(a) - float(b) for a, b in zip(self.first_norms, self.second_norms, strict=True))

    def sentence(self) -> str:
        """What follows from it, for readers."""
        if max(self.differences) < 0:
            return self._turned().sentence()
        low, high, middle = self.accuracies[0], self.accuracies[-1], (self.accuracies[0] + self.accuracies[-1]) / 2
        first, second = (np.interp(middle, self.accuracies, norms) for norms in (self.first_norms, self.second_norms))
        at = f"at {100 * middle:.2f}% clean accuracy norm {first:.3f} against {second:.3f}"
        spread = f"{min(self.differences):+.3f} to {max(self.differences):+.3f}"
        over = f"from {100 * low:.2f}% to {100 * high:.2f}% {spread}" if low < high else "the only one in common"
        if min(self.differences) <= 0:
            return f"neither of {self.first} and {self.second} lies outside the other: {at}; {over}"
        if any(ahead <= noise for ahead, noise in zip(self.differences, self.noise, strict=True)):
            return f"{self.first} is ahead of {self.second}, but within the noise: {at}; {over}"
        return f"{self.first} lies outside {self.second}: {at}; {over}"

    def _turned(self) -> Comparison:
        return Comparison(self.second, self.first, self.accuracies, self.second_norms, self.first_norms, self.noise)


def compare(first: Curve, second: Curve) -> Comparison | None:
    """Norms of two curves at equal accuracy, linear between runs.

    Runs that another run of the same method beats in both are left out: nobody would choose them.

    Returns:
        The comparison, or None if the curves have no accuracy in common.
    """
    fronts = [front(curve.points) for curve in (first, second)]
    low, high = max(points[0].y for points in fronts), min(points[-1].y for points in fronts)
    if low > high:
        return None
    inside = {point.y for points in fronts for point in points if low <= point.y <= high}
    accuracies = sorted(inside | {low, high})
    norms = [np.interp(accuracies, [p.y for p in points], [p.x for p in points]).tolist() for points in fronts]
    halves = [np.interp(accuracies, [p.y for p in points], [_half_width(p) for p in points]) for points in fronts]
    noise = np.hypot(*halves).tolist()
    return Comparison(first.label, second.label, tuple(accuracies), tuple(norms[0]), tuple(norms[1]), tuple(noise))


def _half_width(point: Point) -> float:
    """Half of the interval of a norm; 0 where there is none."""
    return 0.0 if point.x_interval is None else (point.x_interval.high - point.x_interval.low) / 2


def compare_all(curves: tuple[Curve, ...]) -> list[str]:
    """A sentence for each pair of curves."""
    sentences = []
    for first, second in combinations(curves, 2):
        found = compare(first, second)
        nothing = f"{first.label} and {second.label} have no clean accuracy in common: nothing to compare"
        sentences.append(nothing if found is None else found.sentence())
    return sentences
