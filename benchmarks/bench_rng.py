"""Time of random numbers that belong to an image, against torch's generator, which follows the batch.

    python -m benchmarks.bench_rng
    python -m benchmarks.bench_rng --device cuda

Every round measures each way once, in the same process; the table gives the median nanoseconds per number over the
rounds, and ratios of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_advdef.rng import SampleRNG


class Way(NamedTuple):
    """One kind of numbers, drawn by torch and by us."""

    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]


def ways(images: int, shape: tuple[int, ...], device: str) -> dict[str, Way]:
    rng = SampleRNG.for_images(torch.arange(images, device=device))
    size = (images, *shape)
    return {
        "uniform": Way(lambda: torch.rand(size, device=device), lambda: rng.uniform(*shape)),
        "uniform in (-1, 1)": Way(
            lambda: torch.empty(size, device=device).uniform_(-1, 1), lambda: rng.uniform(*shape, low=-1.0, high=1.0)
        ),
        "normal": Way(lambda: torch.randn(size, device=device), lambda: rng.normal(*shape)),
        "integers below 10": Way(
            lambda: torch.randint(0, 10, size, device=device), lambda: rng.integers(*shape, high=10)
        ),
        "bits": Way(
            lambda: torch.empty(size, device=device, dtype=torch.bool).bernoulli_(0.5), lambda: rng.bits(*shape)
        ),
        "signs": Way(
            lambda: torch.randint(0, 2, size, device=device, dtype=torch.float32) * 2 - 1, lambda: rng.signs(*shape)
        ),
    }


def seconds(draw: Callable[[], Tensor], repeats: int, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        draw()
    wait()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = tuple(arguments.shape)
    kinds = ways(arguments.images, shape, arguments.device)
    for way in kinds.values():  # the first call pays for lazy set-up
        way.theirs(), way.ours()
    print(f"{arguments.images} x {shape}, {arguments.device}, 1 thread, torch {torch.__version__}")
    print(f"{'numbers':20}{'torch ns':>10}{'ours ns':>10}{'ours / torch':>14}")
    count = arguments.images * torch.Size(shape).numel()
    for name, way in kinds.items():
        rounds = [
            tuple(seconds(draw, arguments.repeats, arguments.device) for draw in way) for _ in range(arguments.rounds)
        ]
        theirs, ours = (statistics.median(times) / count * 1e9 for times in zip(*rounds, strict=True))
        ratio = statistics.median(our / their for their, our in rounds)
        print(f"{name:20}{theirs:10.2f}{ours:10.2f}{ratio:14.2f}")


if __name__ == "__main__":
    main()
