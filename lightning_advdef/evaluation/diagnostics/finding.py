"""What a check says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["raised", "clear", "unmeasured"]


@dataclass(frozen=True)
class Finding:
    """One line of the diagnostics, as ``robustness.json`` holds it.

    Args:
        name: Of the check.
        status: ``raised`` where it makes a number doubtful; ``unmeasured`` where the evaluation ran nothing that tells.
        scenario: Whose number it is about; empty where it is about the defense.
        measured: What was measured, in ``unit``; None if nothing was.
        threshold: What it was compared with, in the same unit.
        unit: Of both.
        meaning: What it says, in a sentence.
        next: Lines of YAML to paste under ``evaluation.scenarios``; empty where no scenario would help, or was run.
    """

    name: str
    status: Status
    scenario: str
    measured: float | None
    threshold: float | None
    unit: str
    meaning: str
    next: str

    def plain(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Measure:
    """What a check found for one scenario, or for the defense.

    Args:
        measured: In the unit of the check.
        raised: Whether that is beyond the threshold by more than chance explains.
        scenario: Whose number is doubtful then.
        other: Scenario that it was compared with.
        next: Lines of YAML that would settle it.
    """

    measured: float
    raised: bool
    scenario: str = ""
    other: str = ""
    next: str = ""


@dataclass(frozen=True)
class Check:
    """A question that every evaluation is asked.

    Args:
        name: Short name, the heading in docs/diagnostics.md.
        unit: Of what is measured.
        threshold: Beyond which it speaks.
        meaning: A sentence, in which ``{scenario}`` and ``{other}`` are names of scenarios.
        below: It speaks below the threshold instead of above.
    """

    name: str
    unit: str
    threshold: float
    meaning: str
    below: bool = False

    def findings(self, measures: Sequence[Measure], to_measure: str = "", *, applies: bool = True) -> list[Finding]:
        """One for each scenario that raises it; otherwise one, for the scenario nearest to doing so.

        Args:
            measures: What was measured; none if the evaluation ran nothing that tells.
            to_measure: Lines of YAML of a scenario that would tell.
            applies: Whether the question makes sense here; otherwise it is clear, though nothing was measured.
        """
        if not measures:
            about = self.meaning.format(scenario="an attack", other="another")
            status: Status = "unmeasured" if applies else "clear"
            return [Finding(self.name, status, "", None, self.threshold, self.unit, about, to_measure)]
        raised = [measure for measure in measures if measure.raised]
        nearest = (min if self.below else max)(measures, key=lambda measure: measure.measured)
        return [self._finding(measure) for measure in raised or [nearest]]

    def _finding(self, measure: Measure) -> Finding:
        return Finding(
            self.name,
            "raised" if measure.raised else "clear",
            measure.scenario,
            measure.measured,
            self.threshold,
            self.unit,
            self.meaning.format(scenario=measure.scenario, other=measure.other),
            measure.next if measure.raised else "",
        )
