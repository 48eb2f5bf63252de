"""How many passes an attack spends, known before it runs."""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Passes through the surrogate, for one image and one draw; NaN where an attack does not say.

    Attributes:
        forward: Forward passes.
        backward: Backward passes.
    """

    forward: float
    backward: float

    def plus(self, other: Cost) -> Cost:
        """This and then the other."""
        return Cost(self.forward + other.forward, self.backward + other.backward)

    def times(self, count: int) -> Cost:
        """This ``count`` times."""
        return Cost(self.forward * count, self.backward * count)
