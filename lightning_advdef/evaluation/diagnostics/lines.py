"""What the terminal says of the diagnostics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_ORDER = ("raised", "clear", "unmeasured")


def count_line(findings: Sequence[Mapping[str, Any]]) -> str:
    """How many checks say what, e.g. ``diagnostics: 14 clear, 2 unmeasured``."""
    checks = {finding["name"]: finding["status"] for finding in findings}
    counts = Counter(checks.values())
    return "diagnostics: " + ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])


def spoken_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each finding that is raised, and below them the scenarios to run next, each once."""
    raised = [finding for finding in findings if finding["status"] == "raised"]
    lines = [f"{finding['name']}: {finding['meaning']} ({measured(finding)})" for finding in raised]
    entries = next_entries(findings)
    if entries:
        lines.append("run next, under evaluation.scenarios:")
        lines += [f"    {line}" for entry in entries for line in entry.splitlines()]
    return lines


def measured(finding: Mapping[str, Any]) -> str:
    """What was measured and what it was compared with, e.g. ``share of images 1, threshold 0.05``."""
    return f"{finding['unit']} {_number(finding['measured'])}, threshold {_number(finding['threshold'])}"


def next_entries(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scenarios to run next of findings that are raised, as YAML, each once whatever its name."""
    entries: dict[str, str] = {}
    for finding in findings:
        if finding["status"] == "raised" and finding["next"]:
            name, _, rest = finding["next"].partition("\n")
            entries.setdefault(rest, name)
    return ["\n".join([name, *rest.splitlines()]) for rest, name in entries.items()]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
