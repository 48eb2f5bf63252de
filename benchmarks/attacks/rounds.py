"""The order of runs: library after library within each round, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.attacks.cases import CASES, Setting
from benchmarks.attacks.measure import OURS, Record, count_passes, lacks, measure
from benchmarks.attacks.networks import Target
from lightning_advdef.data import get_spec
from lightning_advdef.types import Batch, Norm

# these go image by image, or nearly so
_SLOW = {"art": ("Square", "CW", "CW-linf", "DeepFool"), "torchattacks": ("DeepFool",)}


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Attributes:
        libraries: Which ones, in the order of the first round.
        images: Attacked by each library.
        slow_images: Attacked by libraries that go image by image.
        batch: Images attacked at once.
        seeds: Number of seeds; attacks without chance get more rounds instead.
        rounds: Rounds per seed.
        steps_divided_by: Shortens all attacks but AutoAttack.
        device: ``cpu`` or ``cuda``.
        eps: Instead of the network's own budget.
    """

    libraries: Sequence[str]
    images: int = 200
    slow_images: int = 20
    batch: int = 200
    seeds: int = 3
    rounds: int = 1
    steps_divided_by: int = 1
    device: str = "cpu"
    eps: float | None = None


def warm_up(target: Target, plan: Plan) -> None:
    """The first passes pay for lazy set-up."""
    images = target.batch.images[: plan.batch].clone().requires_grad_()
    for _ in range(2):
        torch.autograd.grad(target.network(images).sum(), images)


def run_case(target: Target, attack: str, norm: Norm, plan: Plan) -> Iterator[Record]:
    """All runs of one attack on one network; a library that fails gives one record that says why."""
    case, spec = CASES[attack], get_spec(target.known.data)
    steps = max(1, case.steps // plan.steps_divided_by)
    eps = plan.eps or target.known.eps[norm]
    setting = Setting(attack, norm, eps, steps, spec.classes, spec.shape, 0, plan.device)
    taking_part, failures = _libraries(target, setting, plan)
    yield from failures
    seeds, rounds = (plan.seeds, plan.rounds) if case.random else (1, plan.rounds * plan.seeds)
    for number in range(seeds * rounds):
        seed, repeat = divmod(number, rounds)
        for library in _rotated(taking_part, number):
            record = _run(target, library, replace(setting, seed=seed), plan, repeat)
            yield record
            if record.failed is not None:
                taking_part.remove(library)


def _rotated(libraries: Sequence[str], by: int) -> list[str]:
    shift = by % max(1, len(libraries))
    return [*libraries[shift:], *libraries[:shift]]


def _libraries(target: Target, setting: Setting, plan: Plan) -> tuple[list[str], list[Record]]:
    """Libraries that have the attack, and a record for each that cannot be asked."""
    taking_part, failures = [], []
    for library in plan.libraries:
        try:
            if not lacks(library, target.network, setting):
                taking_part.append(library)
        except Exception as error:  # whatever a library raises is a row of the table
            failures.append(replace(_blank(target, library, setting, plan, 0), failed=_reason(error)))
    return taking_part, failures


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:150].replace("|", "/")


def _blank(target: Target, library: str, setting: Setting, plan: Plan, repeat: int) -> Record:
    images = plan.slow_images if setting.attack in _SLOW.get(library, ()) else plan.images
    return Record(
        target.name, setting.attack, setting.norm, library, setting.seed, repeat, _machine(plan.device),
        torch.get_num_threads(), torch.__version__, setting.eps, setting.steps, min(images, len(target.batch.labels)),
    )  # fmt: skip


def _machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU {platform.machine()}"


def _run(target: Target, library: str, setting: Setting, plan: Plan, repeat: int) -> Record:
    """One run, with its result or the reason why there is none."""
    record = _blank(target, library, setting, plan, repeat)
    batch = Batch(*(tensor[: record.images] for tensor in target.batch))
    try:
        record = replace(record, **measure(library, target.network, batch, setting, plan.batch))
        if library in OURS and setting.seed == repeat == 0:
            record = replace(record, **count_passes(library, target.network, batch, setting, plan.batch))
    except Exception as error:  # as above
        return replace(record, failed=_reason(error))
    finally:
        target.network.zero_grad(set_to_none=True)  # some peers fill the parameters' gradients
    return record
