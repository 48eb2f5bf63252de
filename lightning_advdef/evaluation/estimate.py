"""What an evaluation will cost where nothing is fooled, said before it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
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
_SLOW = 1.0  # seconds of the first pass of an image, from which on a trial has fewer
_SHARE = 0.1  # passes of all such trials as a share of those of the verdicts
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
    whole = FullGradient(defense)
    surrogates = {_key(surrogate): surrogate for surrogate in (whole, *(runner.surrogate for runner in runners))}
    passes = int(_SHARE * images * verdicts / len(surrogates))
    times = {key: _seconds_per_image(surrogate, batch, passes) for key, surrogate in surrogates.items()}
    deployed = times[_key(whole)]
    seconds = images * verdicts * deployed.forward
    for runner in runners:
        each, cost = times[_key(runner.surrogate)], _cost(runner, deployed.classes)
        seconds += images * (cost.backward * each.both + max(0.0, cost.forward - cost.backward) * each.forward)
    again = _seconds_of_diagnostics(runners, times, total, draws) if total else 0.0
    seconds += again
    if math.isnan(seconds) or seconds < _WORTH_SAYING:
        return None
    cost = cost_per_image(runners, deployed.classes)
    return (
        f"about {cost.forward:,.0f} forward and {cost.backward:,.0f} backward passes for an image that nothing fools; "
        f"{images:,} of them would take at most {_duration(seconds)} here, less where images are fooled early"
        + (f"; up to {_duration(again)} of it are for the diagnostics" if again >= _WORTH_SAYING else "")
    )


def _key(surrogate: Surrogate) -> str:
    """Equal for surrogates that cost the same."""
    return f"{surrogate.describe()} {surrogate.search_dtype}"


def _seconds_of_diagnostics(
    runners: Sequence[ScenarioRunner], times: Mapping[str, Times], total: int, draws: int
) -> float:
    """Time for looking at some images again, through the surrogate for which it takes longest."""
    seconds = [0.0]
    for runner in runners:
        each, cost = times[_key(runner.surrogate)], probe_cost(runner.surrogate.draws)
        count = affordable(runners, total, draws, each.classes, runner.surrogate.draws)
        seconds.append(count * (cost.backward * each.both + (cost.forward - cost.backward) * each.forward))
    return max(seconds)


def _cost(runner: ScenarioRunner, classes: int) -> Cost:
    return runner.scenario.attack.cost(classes).times(runner.surrogate.draws)


def _seconds_per_image(surrogate: Surrogate, batch: Batch, passes: int) -> Times:
    """Measured on one image, which warms up, and on a batch, in which a purifier may be much faster.

    Args:
        surrogate: What is timed.
        batch: Images to time it on.
        passes: Forward passes and gradients that a batch may take if the one image took long. If that is not enough
            for two images, a gradient counts as a forward pass: what takes long is a purifier, which is in both once.
    """
    with attack_mode(*surrogate.modules):
        # tensors made in inference mode cannot be saved for backward: all of them are copied
        batch = Batch(*(tensor.clone() for tensor in batch))
        forward, classes = _forward(surrogate, _first(1, batch))
        slow, count = forward > _SLOW, _TRIAL_IMAGES // surrogate.draws
        if slow:
            count = min(count, passes // (2 * surrogate.draws))
            if count < 2:
                return Times(forward, forward, classes)
        batch = _first(count, batch)
        both = _both(surrogate, batch)  # before the other, so that this one is warm, too
        forward, _ = _forward(surrogate, batch)
        return Times(forward, both if slow else min(both, _both(surrogate, batch)), classes)


def _first(count: int, batch: Batch) -> Batch:
    return Batch(*(tensor[: max(1, count)] for tensor in batch))


def _forward(surrogate: Surrogate, batch: Batch) -> tuple[float, int]:
    start = device_time(batch.images.device)
    with torch.no_grad():
        classes = surrogate(batch.images, SampleRNG.default(batch.images)).shape[2]
    return (device_time(batch.images.device) - start) / (len(batch.images) * surrogate.draws), classes


def _both(surrogate: Surrogate, batch: Batch) -> float:
    start = device_time(batch.images.device)
    loss_and_gradient(surrogate, batch.images, Goal(batch.labels), cross_entropy, SampleRNG.default(batch.images))
    return (device_time(batch.images.device) - start) / (len(batch.images) * surrogate.draws)


def device_time(device: torch.device) -> float:
    """Seconds on a clock, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the host runs ahead of a GPU
    return time.perf_counter()


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
