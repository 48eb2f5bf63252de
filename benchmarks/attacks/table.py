"""Records as markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.attacks.cases import CASES
from benchmarks.attacks.compare import (
    Cell,
    agreement,
    clock,
    completed,
    fastest,
    per_image,
    read,
    strength,
    strongest,
    time_ratio,
    weaker,
)
from benchmarks.attacks.measure import OURS, PEERS, Record
from benchmarks.attacks.wanted import AGREEMENT, BFLOAT16, NORM, PASSES, POINTS, wanted_bfloat16, wanted_time

_SUMMARY = (
    "network", "attack", "norm", "ours", "strongest peer", "as strong", "passes", "fastest equal peer", "its passes",
    "wall s", "its wall s", "ratio wall (CPU)", "wanted", "bfloat16 wall (CPU)", "bfloat16 verdicts",
)  # fmt: skip
_RUNS = (
    "network", "attack", "norm", "library", "images", "runs", "accuracy or median norm", "fooled", "forward",
    "backward", "wall s", "CPU s", "remark",
)  # fmt: skip
_AGREEMENT = ("network", "norm", "difference, points", "with pyautoattack", "among its seeds", "wanted")


def render(paths: Iterable[str | Path]) -> str:
    """Three tables: ours against the fastest peer of equal strength, AutoAttack image by image, and all runs."""
    cells = read(paths)
    summary = [_summary(where, cell) for where, cell in cells.items() if completed(cell, "ours")]
    agreements = [
        _agreement(where, cell)
        for where, cell in cells.items()
        if where[1] == "AutoAttack" and completed(cell, "ours") and completed(cell, "pyautoattack")
    ]
    runs = [_runs(cell[library]) for cell in cells.values() for library in (*OURS, *PEERS) if library in cell]
    text = [_machine(cells.values()), _table(_SUMMARY, summary)]
    if agreements:
        text += ["AutoAttack, image by image:", _table(_AGREEMENT, agreements)]
    return "\n\n".join([*text, "All runs:", _table(_RUNS, runs)])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(cells: Iterable[Cell]) -> str:
    records = [record for cell in cells for runs in cell.values() for record in runs]
    kinds = sorted({f"{r.device}, {r.threads} threads, torch {r.torch}, {r.images} images" for r in records})
    return "; ".join(kinds)


def _kept(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _mean(records: Sequence[Record], what: str) -> float:
    """Mean over the runs that counted it; NaN of none."""
    values = [value for record in records if (value := getattr(record, what)) is not None]
    return statistics.fmean(values) if values else float("nan")


def _passes(records: Sequence[Record]) -> float:
    return _mean(records, "forward") + _mean(records, "backward")


def _figure(records: Sequence[Record], images: int | None = None) -> str:
    value = strength(records, images or records[0].images)
    return f"{value:.4f}" if CASES[records[0].attack].minimal else f"{value:.1%}"


def _needed(records: Sequence[Record]) -> float | None:
    """Passes per image that are needed, where that was measured."""
    return next((record.needed for record in records if record.needed is not None), None)


def _summary(where: tuple[str, str, str], cell: Cell) -> list[str]:
    ours, best, rival = completed(cell, "ours"), strongest(cell), fastest(cell)
    needed = _needed(ours)
    passes = f"{_passes(ours):.1f}"
    if needed is not None:
        passes += f" ({_passes(ours) / needed:.2f} of needed{'' if _passes(ours) <= PASSES * needed else ', **more**'})"
    row = [*where, _figure(ours)]
    if best is None or rival is None:
        return [*row, "none", "-", passes, "none", "-", f"{_seconds(ours):.2f}", *["-"] * 5]
    theirs = completed(cell, rival)
    bound = NORM if CASES[where[1]].minimal else POINTS
    strong = _kept(weaker(cell, best) <= bound + 1e-9)
    row += [f"{_figure(completed(cell, best))} {best}", strong, passes, rival, f"{_passes(theirs):.1f}"]
    wall, cpu = (time_ratio(cell, "ours", rival, what) for what in ("wall", "cpu"))
    wanted = wanted_time(where[0], where[1], needed or _passes(ours), _passes(theirs))
    demand = "-" if wanted is None else f"{wanted:.2f}: {_kept((cpu if clock(cell) == 'cpu' else wall) <= wanted)}"
    return [
        *row, f"{_seconds(ours):.2f}", f"{_seconds(theirs) * ours[0].images / theirs[0].images:.2f}",
        f"{wall:.2f} ({cpu:.2f})", demand, *_bfloat16(cell, rival, wanted_bfloat16(where[0], where[1])),
    ]  # fmt: skip


def _seconds(records: Sequence[Record]) -> float:
    return per_image(records, "wall") * records[0].images


def _bfloat16(cell: Cell, rival: str, demanded: bool) -> list[str]:
    """Ratio of the search in bfloat16, and whether its strength is that of the search in float32."""
    found = completed(cell, "ours bfloat16")
    if not found:
        return ["-", "-"]
    wall, cpu = (time_ratio(cell, "ours bfloat16", rival, what) for what in ("wall", "cpu"))
    ratio = cpu if clock(cell) == "cpu" else wall
    demand = f", {BFLOAT16:.2f}: {_kept(ratio <= BFLOAT16)}" if demanded else ""
    minimal = CASES[found[0].attack].minimal
    change = weaker(cell, "ours", "ours bfloat16")
    equal = 1 / NORM <= change <= NORM if minimal else abs(change) <= POINTS + 1e-9
    shown = f"x {change:.3f}" if minimal else f"{change * 100:+.1f} points"
    return [f"{wall:.2f} ({cpu:.2f}){demand}", f"{shown}{'' if equal else ', **changed**'}"]


def _agreement(where: tuple[str, str, str], cell: Cell) -> list[str]:
    ours, theirs = completed(cell, "ours"), completed(cell, "pyautoattack")
    difference = weaker(cell, "pyautoattack")
    between, among = agreement(ours, theirs, True), agreement(theirs, theirs, False)
    holds = abs(difference) <= POINTS + 1e-9 and not between < among - AGREEMENT - 1e-9
    return [where[0], where[2], f"{difference * 100:+.2f}", f"{between:.2%}", f"{among:.2%}", _kept(holds)]


def _runs(records: Sequence[Record]) -> list[str]:
    done = [record for record in records if record.failed is None]
    first = records[0]
    row = [first.network, first.attack, first.norm, first.library, str(first.images), str(len(done))]
    if not done:
        return [*row, *["-"] * 6, f"failed: {first.failed}"]
    fooled = statistics.fmean(record.verdict.count("0") / record.images for record in done)
    row += [_figure(done), f"{fooled:.1%}"]
    row += [f"{_mean(done, what):.1f}" for what in ("forward", "backward")]
    row += [f"{per_image(done, what) * first.images:.2f}" for what in ("wall", "cpu")]
    outside = max(record.outside for record in done)
    return [*row, f"{outside} results beyond the budget count as not broken" if outside else ""]
