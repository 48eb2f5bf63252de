"""From records to statements: who is as strong as the strongest, and how long each takes."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.attacks.cases import CASES
from benchmarks.attacks.measure import PEERS, Record
from benchmarks.attacks.wanted import NORM, POINTS

Cell = Mapping[str, Sequence[Record]]
"""Records of one attack on one network, by library."""


def read(paths: Iterable[str | Path]) -> dict[tuple[str, str, str], Cell]:
    """Cells by network, attack and norm, in the order of the files; of equal runs the last one counts."""
    latest: dict[tuple[object, ...], Record] = {}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            record = Record(**json.loads(line))
            run = (record.network, record.attack, record.norm, record.library, record.seed, record.round)
            latest[run] = record
    cells: dict[tuple[str, str, str], dict[str, list[Record]]] = {}
    for record in latest.values():
        cell = cells.setdefault((record.network, record.attack, record.norm), {})
        cell.setdefault(record.library, []).append(record)
    return dict(cells)


def completed(cell: Cell, library: str) -> list[Record]:
    """Runs of a library that gave a result."""
    return [record for record in cell.get(library, ()) if record.failed is None]


def strength(records: Sequence[Record], images: int) -> float:
    """Robust accuracy, or the median norm, of the first so many images: mean over seeds, the lower the stronger."""
    seeds = {record.seed: record for record in records}.values()
    if CASES[records[0].attack].minimal:
        return statistics.fmean(statistics.median(record.sizes[:images]) for record in seeds)
    return statistics.fmean(record.verdict[:images].count("1") / images for record in seeds)


def weaker(cell: Cell, peer: str, library: str = "ours") -> float:
    """By how much a library is weaker than a peer: points of robust accuracy, or the factor of the median norms."""
    peers, ours = completed(cell, peer), completed(cell, library)
    images = min(peers[0].images, ours[0].images)
    mine, theirs = strength(ours, images), strength(peers, images)
    if not CASES[ours[0].attack].minimal:
        return mine - theirs
    return 1.0 if mine == theirs else mine / theirs if theirs else float("inf")


def strongest(cell: Cell) -> str | None:
    """The strongest peer; one that saw fewer images than ours counts only if there is no other."""
    peers = [peer for peer in PEERS if completed(cell, peer)]
    ours = completed(cell, "ours")
    if not ours or not peers:
        return None
    full = [peer for peer in peers if completed(cell, peer)[0].images == ours[0].images]
    return max(full or peers, key=lambda peer: weaker(cell, peer))


def rivals(cell: Cell) -> list[str]:
    """Peers as strong as the strongest."""
    best = strongest(cell)
    if best is None:
        return []
    bound = weaker(cell, best)
    minimal = CASES[completed(cell, best)[0].attack].minimal
    bound = bound / NORM if minimal else bound - POINTS
    return [peer for peer in PEERS if completed(cell, peer) and weaker(cell, peer) >= bound - 1e-9]


def fastest(cell: Cell) -> str | None:
    """The fastest peer that is as strong as the strongest."""
    return min(rivals(cell), key=lambda peer: per_image(completed(cell, peer), clock(cell)), default=None)


def clock(cell: Cell) -> str:
    """What decides who is faster: CPU seconds on a CPU, whose wall seconds also measure other work; else wall."""
    return "cpu" if completed(cell, "ours")[0].device.startswith("CPU") else "wall"


def per_image(records: Sequence[Record], what: str) -> float:
    """Median over runs of seconds (``wall`` or ``cpu``) per image."""
    return statistics.median(getattr(record, what) / record.images for record in records)


def time_ratio(cell: Cell, library: str, peer: str, what: str) -> float:
    """Median over rounds of the time per image of a library over that of a peer in the same round."""
    theirs = {(record.seed, record.round): record for record in completed(cell, peer)}
    pairs = [(record, theirs.get((record.seed, record.round))) for record in completed(cell, library)]
    return statistics.median(
        per_image([ours], what) / max(per_image([peers], what), 1e-12) for ours, peers in pairs if peers is not None
    )


def agreement(left: Sequence[Record], right: Sequence[Record], same_seed: bool) -> float:
    """Share of images on which runs agree, over pairs of runs of equal or of different seeds; NaN without a pair."""
    pairs = [
        (one.verdict, other.verdict)
        for one, other in itertools.product(left, right)
        if (one.seed == other.seed) == same_seed and one.round == other.round
    ]
    if not pairs:
        return float("nan")
    return statistics.fmean(sum(a == b for a, b in zip(*pair, strict=True)) / len(pair[0]) for pair in pairs)
