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
    """A line for each finding that is raised, and below it the scenario to run next."""
    lines: list[str] = []
    for finding in findings:
        if finding["status"] == "raised":
            told = f"{_number(finding['measured'])} {finding['unit']}, threshold {_number(finding['threshold'])}"
            lines.append(f"{finding['name']}: {finding['meaning']} ({told})")
            lines += [f"    {line}" for line in finding["next"].splitlines()]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
