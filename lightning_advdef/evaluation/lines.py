"""What is shown of some results side by side, line by line, without how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lightning_advdef.evaluation.run import Result

CAPTION = "95% intervals; passes = forward + backward"

_Scenario = Mapping[str, Any]


class Line(NamedTuple):
    """A quantity of all runs.

    Attributes:
        title: What it is.
        access: What the attacker knows; empty where that is said above, or there is no attacker.
        cells: Its value in each run as text; empty where a run lacks it.
        detail: Whether it says more about the line above.
        section: Whether something new begins.
    """

    title: str
    access: str
    cells: tuple[str, ...]
    detail: bool = False
    section: bool = False


def percent(accuracy: Mapping[str, Any]) -> str:
    """An accuracy with its interval, e.g. ``93.40% [92.1, 94.5]``."""
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.2f}% [{100 * low:.1f}, {100 * high:.1f}]"


def comparison_lines(results: Mapping[str, Result], seconds: Mapping[str, float] | None = None) -> list[Line]:
    """All that is shown of some runs.

    Args:
        results: Result of each run, by its title.
        seconds: Seconds per epoch of the trainings for which they are known, by the same titles.
    """
    runs = list(results.values())
    names = dict.fromkeys(scenario["name"] for run in runs for scenario in run["scenarios"])
    lines = _of_clean_images(runs)
    if seconds:
        cells = tuple(f"{seconds[name]:.2f}" if name in seconds else "" for name in results)
        lines.append(Line("seconds per epoch", "", cells))
    for name in names:
        lines += _of_scenario(name, [_find(run, name) for run in runs])
    return lines + _of_worst_case(runs)


def _of_clean_images(runs: Sequence[Result]) -> list[Line]:
    lines = [
        Line("images", "", tuple(str(run["clean_accuracy"]["images"]) for run in runs)),
        Line("clean accuracy", "", tuple(percent(run["clean_accuracy"]) for run in runs)),
        Line("right on every draw", "", tuple(map(_every_draw, runs)), detail=True),
        Line("rejected", "", tuple(percent(run["rejected"]) if "rejected" in run else "" for run in runs), detail=True),
    ]
    return [line for line in lines if any(line.cells)]


def _of_worst_case(runs: Sequence[Result]) -> list[Line]:
    lines: list[Line] = []
    for norm, eps in dict.fromkeys((case["norm"], case["eps"]) for run in runs for case in run["worst_case"]):
        cases = [[c for c in run["worst_case"] if (c["norm"], c["eps"]) == (norm, eps)] for run in runs]
        cells = tuple(percent(found[0]["accuracy"]) if found else "" for found in cases)
        lines.append(Line(f"worst case, {norm} {eps:.4g}", "all", cells, section=not lines))
    return lines


def _number(value: float | None) -> str:
    """Four digits; a dash for a mean over no image."""
    return "-" if value is None else f"{value:.4f}"


def _find(run: Result, name: str) -> _Scenario | None:
    return next((scenario for scenario in run["scenarios"] if scenario["name"] == name), None)


def _of_scenario(name: str, found: Sequence[_Scenario | None]) -> list[Line]:
    lines: list[Line] = []

    def line(title: str, show: Callable[[_Scenario], str]) -> None:
        cells = tuple(show(scenario) if scenario else "" for scenario in found)
        if any(cells):
            access = "" if lines else " | ".join(dict.fromkeys(scenario["access"] for scenario in found if scenario))
            lines.append(Line(title, access, cells, detail=bool(lines), section=not lines))

    if any(scenario and "rho" in scenario for scenario in found):
        line(f"{name}: rho", lambda s: _number(s["rho"]) if "rho" in s else "")
        line("rho, centred", lambda s: _number(s["rho_centred"]) if "rho_centred" in s else "")
        for images, convention in (("right images", "excluded"), ("wrong as 0", "included")):
            line(f"mean | median, {images}", partial(_mean_and_median, convention))
        line("share fooled", lambda s: f"{100 * s['share_fooled']:.1f}%" if "share_fooled" in s else "")
        line("robust accuracy", lambda s: percent(s["robust_accuracy"]))
    else:
        line(name, lambda s: percent(s["robust_accuracy"]))
        line("budget", lambda s: f"{s['norm']} {s['eps']:.4g}" if "eps" in s else "")
        line("mean l2 norm", lambda s: _number(s["mean_l2"]) if "mean_l2" in s and "eps" not in s else "")
    differing = _differing([scenario.get("attack", {}) for scenario in found if scenario])
    line("attack", lambda s: _told(s.get("attack", {}), differing))
    line("right on every draw", _every_draw)
    for part in dict.fromkeys(part["name"] for s in found if s for part in s.get("parts", [])):
        line(f"after {part}", partial(_part, part, "accuracy"))
        line(f"after {part}, right or rejected", partial(_part, part, "right_or_rejected"))
    line("rounded to 8 bits", lambda s: percent(s["rounded_accuracy"]) if "rounded_accuracy" in s else "")
    line("rejected", lambda s: percent(s["rejected"]) if "rejected" in s else "")
    line("right or rejected", lambda s: percent(s["right_or_rejected"]) if "rejected" in s else "")
    line("passes", lambda s: f"{s['passes']['forward']:.1f} + {s['passes']['backward']:.1f}")
    return lines


def _differing(attacks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings in which attacks of one name differ, but for budgets, which have a line of their own."""
    told = [_flat(attack) for attack in attacks]
    if len({each.get("") for each in told}) > 1:
        return [""]
    names = dict.fromkeys(name for each in told for name in each if name.rpartition(".")[2] not in ("eps", "norm"))
    return [name for name in names if any(each.get(name) != told[0].get(name) for each in told)]


def _told(attack: Mapping[str, Any], names: Sequence[str]) -> str:
    """Some settings of an attack, e.g. ``steps=10``; of the class its name."""
    settings = _flat(attack)
    return ", ".join(f"{name}={settings[name]}".lstrip("=") for name in names if name in settings)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Settings by their path, such as ``attacks.pgd.steps``; at the path of an object stands the name of its class."""
    if not isinstance(value, Mapping):
        return {name: value}
    if "class_path" in value:
        own = {name: value["class_path"].rpartition(".")[2]}
        return own | _flat(value.get("init_args", {}), name)
    items = [_flat(item, f"{name}.{key}".lstrip(".")) for key, item in value.items()]
    return {key: item for found in items for key, item in found.items()}


def _every_draw(summary: Mapping[str, Any]) -> str:
    """Worst draw of each image, and the standard deviation of a single draw's accuracy."""
    if "every_draw" not in summary:
        return ""
    return f"{percent(summary['every_draw'])}, one draw +-{100 * summary['draw_deviation']:.2f}"


def _mean_and_median(convention: str, scenario: _Scenario) -> str:
    """Norms of a minimal-norm scenario; of another kind of the same name there are none."""
    if "norms" not in scenario:
        return ""
    mean, median = (_number(scenario["norms"][f"{kind}_{convention}"]) for kind in ("mean", "median"))
    return f"{mean} | {median} ({scenario['norm']})"


def _part(name: str, share: str, scenario: _Scenario) -> str:
    """A share after a part and those before it, and of the part alone where it had more than survivors to attack."""
    numbered = {part["name"]: (number, part) for number, part in enumerate(scenario.get("parts", []))}
    number, part = numbered.get(name, (0, {}))
    if share not in part:
        return ""
    after = f"{100 * part[f'cumulative_{share}']['value']:.2f}%"
    if number == 0 or part[share] is None:
        return after
    return f"{after} ({100 * part[share]['value']:.2f}% alone)"
