"""One measurement: run an attack, take the time, judge what it returned."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.attacks.cases import CASES, Run, Setting
from benchmarks.attacks.ours import our_attack
from benchmarks.attacks.passes import CountedNetwork, FirstBreak
from lightning_advdef.attacks import FullGradient
from lightning_advdef.attacks.base import within_budget
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.attacks.verdict import deployed_logits, exact_arithmetic
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

OURS = ("ours", "ours bfloat16")
PEERS = ("torchattacks", "foolbox", "pyautoattack", "art")
_PIXEL_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Record:
    """What one run of one library gave.

    Attributes:
        images: Images attacked; some libraries are too slow for all of them and get the first few.
        wall: Seconds.
        cpu: Seconds of all threads of the process.
        forward: Forward passes per image; None where they were not counted, ours are in the first round.
        backward: Backward passes per image, likewise.
        verdict: One figure per image: 1 if robust, 0 if broken.
        sizes: Norms of a minimal-norm attack: 0 for images wrong from the start, infinite if not fooled.
        outside: Images returned outside the budget or [0, 1]; they count as not broken.
        needed: Passes per image of our attack if every image leaves when it is broken.
        failed: Why there is no result.
    """

    network: str
    attack: str
    norm: str
    library: str
    seed: int
    round: int
    device: str
    threads: int
    torch: str
    eps: float
    steps: int
    images: int
    wall: float = 0.0
    cpu: float = 0.0
    forward: float | None = None
    backward: float | None = None
    verdict: str = ""
    sizes: tuple[float, ...] = ()
    outside: int = 0
    needed: float | None = None
    failed: str | None = None


class Judged(NamedTuple):
    """Verdicts of a batch, see :class:`Record`."""

    robust: Tensor
    sizes: Tensor
    outside: int


def judge(network: nn.Module, batch: Batch, adversarial: Tensor, setting: Setting) -> Judged:
    """Verdicts in float32 by the deployed pass, the same for all libraries."""
    rng = SampleRNG.for_images(batch.indices)
    clean, attacked = (
        deployed_logits(network, images, rng)[0].argmax(dim=1) == batch.labels for images in (batch.images, adversarial)
    )
    sizes = lp_norm(adversarial - batch.images, setting.norm)
    pixels = ((adversarial >= -_PIXEL_TOLERANCE) & (adversarial <= 1 + _PIXEL_TOLERANCE)).flatten(1).all(dim=1)
    allowed = pixels if CASES[setting.attack].minimal else pixels & within_budget(sizes, setting.eps, setting.norm)
    robust = clean & (attacked | ~allowed)
    smallest = torch.where(clean, torch.where(robust, torch.inf, sizes), 0.0)
    return Judged(robust, smallest, int((~allowed).sum()))


def measure(library: str, network: nn.Module, batch: Batch, setting: Setting, size: int) -> dict[str, Any]:
    """Runs one library on a batch in parts of ``size`` images; fields of :class:`Record`."""
    counted = None
    if library in OURS:
        run = _ours(FullGradient(network), library, batch, setting, size)
    else:
        counted = CountedNetwork(network).eval()
        run = _peer(library, counted, setting)
    adversarial, wall, cpu = _timed(run, batch, size, setting)
    judged = judge(network, batch, adversarial, setting)
    fields: dict[str, Any] = {"wall": wall, "cpu": cpu, "outside": judged.outside}
    if counted is not None:
        count = len(batch.labels)
        fields |= {"forward": counted.forwards / count, "backward": counted.backwards / count}
    if CASES[setting.attack].minimal:
        fields["sizes"] = tuple(round(value, 6) for value in judged.sizes.tolist())
    return fields | {"verdict": "".join(str(int(robust)) for robust in judged.robust.tolist())}


def count_passes(library: str, network: nn.Module, batch: Batch, setting: Setting, size: int) -> dict[str, float]:
    """``forward``, ``backward`` and ``needed`` of :class:`Record`, by an extra run of ours that is not timed."""
    cost = our_attack(setting).cost(setting.classes)
    spent, needed = [], []
    for images, labels, indices in zip(*(tensor.split(size) for tensor in batch), strict=True):
        surrogate = FirstBreak(network, images, labels, setting.norm, setting.eps)
        passes = surrogate.start_counting(len(labels), labels.device)
        part = Batch(images, labels, indices)
        with exact_arithmetic():
            _ours(surrogate, library, part, setting, size)(images, labels)
        spent.append(torch.stack([passes.forward, passes.backward], dim=1))
        needed.append(surrogate.needed(cost))
    forward, backward = torch.cat(spent).double().mean(dim=0).tolist()
    counted = {"forward": forward, "backward": backward}
    case = CASES[setting.attack]
    return counted | {"needed": float(torch.cat(needed).mean())} if case.priced and not case.minimal else counted


def lacks(library: str, network: nn.Module, setting: Setting) -> bool:
    """Whether a library has no such attack."""
    return library not in OURS and _module(library).make(network, setting) is None


def to_json(record: Record) -> dict[str, Any]:
    """The record without what it does not say."""
    return {name: value for name, value in asdict(record).items() if value not in (None, "", ())}


def _module(library: str) -> Any:
    return importlib.import_module(f"benchmarks.attacks.peers.{library}")


def _ours(surrogate: FullGradient, library: str, batch: Batch, setting: Setting, size: int) -> Run:
    """Our attack; called once for each part of the batch, in order."""
    surrogate.search_dtype = torch.float32 if library == "ours" else torch.bfloat16
    attack, indices = our_attack(setting), iter(batch.indices.split(size))

    def run(images: Tensor, labels: Tensor) -> Tensor:
        return attack(surrogate, images, labels, SampleRNG.for_images(next(indices), setting.seed))

    return run


def _peer(library: str, network: nn.Module, setting: Setting) -> Run:
    torch.manual_seed(setting.seed)
    run: Run | None = _module(library).make(network, setting)
    assert run is not None
    return run


def _timed(run: Run, batch: Batch, size: int, setting: Setting) -> tuple[Tensor, float, float]:
    wait: Callable[[], Any] = torch.cuda.synchronize if setting.device == "cuda" else lambda: None
    wait()
    with exact_arithmetic():
        wall, cpu = time.perf_counter(), time.process_time()
        parts = zip(batch.images.split(size), batch.labels.split(size), strict=True)
        adversarial = torch.cat([run(images, labels).detach() for images, labels in parts])
        wait()
    return adversarial, time.perf_counter() - wall, time.process_time() - cpu
