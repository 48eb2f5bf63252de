"""What an evaluation will cost where nothing is fooled, said before it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from lightning_advdef.attacks import FullGradient
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import loss_and_gradient
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.evaluation.runner import ScenarioRunner
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

_TRIAL_IMAGES = 32
_WORTH_SAYING = 60.0  # seconds


def cost_per_image(runners: Sequence[ScenarioRunner], classes: int) -> Cost:
    """Passes for an image that no attack fools; NaN if an attack does not say."""
    total = Cost(0, 0)
    for runner in runners:
        total = total.plus(runner.scenario.attack.cost(classes).times(runner.surrogate.draws))
    return total


def estimate(defense: nn.Module, runners: Sequence[ScenarioRunner], batch: Batch, images: int) -> str | None:
    """A sentence about passes and time; None if it is under a minute or an attack does not know its cost.

    Args:
        defense: The deployed defense.
        runners: All scenarios.
        batch: Some images to time a pass on.
        images: How many images this process has to judge.
    """
    forward, both, classes = _seconds_per_image(defense, Batch(*(tensor[:_TRIAL_IMAGES] for tensor in batch)))
    cost = cost_per_image(runners, classes)
    seconds = images * (cost.backward * both + max(0.0, cost.forward - cost.backward) * forward)
    if math.isnan(seconds) or seconds < _WORTH_SAYING:
        return None
    return (
        f"about {cost.forward:,.0f} forward and {cost.backward:,.0f} backward passes for an image that nothing fools; "
        f"{images:,} of them would take {_duration(seconds)} here, images that are fooled early take less"
    )


def _seconds_per_image(defense: nn.Module, batch: Batch) -> tuple[float, float, int]:
    """Time of a forward pass, of a gradient, and the number of classes."""
    surrogate = FullGradient(defense)
    times = {}
    with attack_mode(defense):
        # tensors made in inference mode cannot be saved for backward: all of them are copied
        batch = Batch(*(tensor.clone() for tensor in batch))
        goal, rng = Goal(batch.labels), SampleRNG.default(batch.images)
        for _ in range(2):  # the first round warms up
            start = _now(batch.images.device)
            with torch.no_grad():
                classes = surrogate(batch.images, rng).shape[2]
            middle = _now(batch.images.device)
            loss_and_gradient(surrogate, batch.images, goal, cross_entropy, rng)
            times = {"forward": middle - start, "both": _now(batch.images.device) - middle}
    return times["forward"] / len(batch.images), times["both"] / len(batch.images), classes


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
