"""What an evaluation will cost where nothing is fooled, said before it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from lightning_advdef.attacks import FullGradient, Surrogate
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import loss_and_gradient
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.evaluation.diagnostics.probes import affordable, probe_cost
from lightning_advdef.evaluation.runner import ScenarioRunner
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

_TRIAL_IMAGES = 32
_SLOW = 1.0  # seconds for an image, where so many might take too long
_SHARE = 20  # verdicts for each image of a trial that is slow: it takes at most a twentieth of their time
_WORTH_SAYING = 60.0  # seconds


class Times(NamedTuple):
    """What a draw for an image costs.

    Attributes:
        forward: Seconds of a forward pass.
        both: Seconds of a gradient.
        classes: Number of classes.
    """

    forward: float
    both: float
    classes: int


def cost_per_image(runners: Sequence[ScenarioRunner], classes: int) -> Cost:
    """Passes for an image that no attack fools; NaN if an attack does not say."""
    total = Cost(0, 0)
    for runner in runners:
        total = total.plus(_cost(runner, classes))
    return total


def estimate(
    defense: nn.Module,
    runners: Sequence[ScenarioRunner],
    batch: Batch,
    images: int,
    draws: int = 1,
    total: int = 0,
) -> str | None:
    """A sentence about passes and time; None if it is under a minute or an attack does not know its cost.

    Args:
        defense: The deployed defense.
        runners: All scenarios.
        batch: Some images to time a pass on.
        images: How many images this process has to judge.
        draws: Passes of the deployed defense in a verdict.
        total: How many images are judged by all processes, by interrupted runs, too, of which the diagnostics look at
            some again at the end; 0 without diagnostics.
    """
    verdicts = (1 + len(runners)) * draws
    stopwatch = _Stopwatch(batch, images * verdicts // _SHARE)
    deployed = stopwatch.times(FullGradient(defense))
    seconds = verdicts * deployed.forward
    for runner in runners:
        times, cost = stopwatch.times(runner.surrogate), _cost(runner, deployed.classes)
        seconds += cost.backward * times.both + max(0.0, cost.forward - cost.backward) * times.forward
    again = _seconds_of_diagnostics(runners, stopwatch, total, draws) if total else 0.0
    whole = images * seconds + again
    if math.isnan(whole) or whole < _WORTH_SAYING:
        return None
    cost = cost_per_image(runners, deployed.classes)
    return (
        f"about {cost.forward:,.0f} forward and {cost.backward:,.0f} backward passes for an image that nothing fools; "
        f"{images:,} of them would take at most {_duration(whole)} here, less where images are fooled early"
        + (f"; up to {_duration(again)} of it are for the diagnostics" if again >= _WORTH_SAYING else "")
    )


class _Stopwatch:
    """Times surrogates, equal ones once.

    Args:
        batch: Images to time passes on.
        few: How many of them at most where a pass takes long.
    """

    def __init__(self, batch: Batch, few: int) -> None:
        self._batch, self._few = batch, few
        self._known: dict[str, Times] = {}

    def times(self, surrogate: Surrogate) -> Times:
        key = f"{surrogate.describe()} {surrogate.search_dtype}"
        if key not in self._known:
            self._known[key] = _seconds_per_image(surrogate, self._batch, self._few)
        return self._known[key]


def _seconds_of_diagnostics(runners: Sequence[ScenarioRunner], stopwatch: _Stopwatch, total: int, draws: int) -> float:
    """Time for looking at some images again, through the surrogate for which it takes longest."""
    each = [0.0]
    for runner in runners:
        times, cost = stopwatch.times(runner.surrogate), probe_cost(runner.surrogate.draws)
        count = affordable(runners, total, draws, times.classes, runner.surrogate.draws)
        each.append(count * (cost.backward * times.both + (cost.forward - cost.backward) * times.forward))
    return max(each)


def _cost(runner: ScenarioRunner, classes: int) -> Cost:
    return runner.scenario.attack.cost(classes).times(runner.surrogate.draws)


def _seconds_per_image(surrogate: Surrogate, batch: Batch, few: int) -> Times:
    """Measured on one image, which warms up, and on more: as many as are usual if that is quick, else at most ``few``.

    What takes long is a purifier, whose share in a gradient is that of a forward pass; a batch may make it faster.
    """
    with attack_mode(*surrogate.modules):
        # tensors made in inference mode cannot be saved for backward: all of them are copied
        batch = Batch(*(tensor.clone() for tensor in batch))
        forward, classes = _forward(surrogate, _first(1, batch))
        usual = _TRIAL_IMAGES // surrogate.draws
        if forward > _SLOW:
            count = min(usual, few)
            forward = _forward(surrogate, _first(count, batch))[0] if count > 1 else forward
            return Times(forward, forward, classes)
        batch = _first(usual, batch)
        both = _both(surrogate, batch)  # before the other, so that this one is warm, too
        return Times(_forward(surrogate, batch)[0], min(both, _both(surrogate, batch)), classes)


def _first(count: int, batch: Batch) -> Batch:
    return Batch(*(tensor[: max(1, count)] for tensor in batch))


def _forward(surrogate: Surrogate, batch: Batch) -> tuple[float, int]:
    start = _now(batch.images.device)
    with torch.no_grad():
        classes = surrogate(batch.images, SampleRNG.default(batch.images)).shape[2]
    return (_now(batch.images.device) - start) / (len(batch.images) * surrogate.draws), classes


def _both(surrogate: Surrogate, batch: Batch) -> float:
    start = _now(batch.images.device)
    loss_and_gradient(surrogate, batch.images, Goal(batch.labels), cross_entropy, SampleRNG.default(batch.images))
    return (_now(batch.images.device) - start) / (len(batch.images) * surrogate.draws)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
