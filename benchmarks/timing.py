"""Times of two sides that run in turn, and their ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

import torch

Answer = TypeVar("Answer")


class Spent(NamedTuple):
    """Wall and CPU seconds."""

    wall: float
    cpu: float


def timed(run: Callable[[], Answer], device: str = "cpu") -> tuple[Spent, Answer]:
    """What a call cost, and what it gave; waits for the device before and after."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    _wait(device)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu), found


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def print_ratio(times: Mapping[str, Sequence[Spent]], slow: str, fast: str) -> None:
    """Medians of both sides, and the median over rounds of their ratio within a round."""
    for name, values in times.items():
        print(f"  {name:16s} wall {median(w for w, _ in values):.3f} s, CPU {median(c for _, c in values):.3f} s")
    pairs = list(zip(times[slow], times[fast], strict=True))
    wall, cpu = (median(plain[kind] / ours[kind] for plain, ours in pairs) for kind in (0, 1))
    print(f"  median ratio: wall {wall:.2f}, CPU {cpu:.2f}", flush=True)
