"""What RIDE does to an image, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_advdef.defenses.ride.estimation import Estimation
from lightning_advdef.defenses.ride.purifier import RIDE
from lightning_advdef.rng import SampleRNG

_POINTS = 50


class Course(NamedTuple):
    """Purification of some images, at some of its steps.

    Attributes:
        steps: Steps taken at each point, length P.
        scores: Softmax of what the networks made of the images until then, shape ``(P, N, K)``.
        to_clean: Mean absolute distance to the clean images, in 0..255 units, shape ``(P, N)``.
        to_adversarial: The same to the images under attack.
        purified: The result, shape ``(N, C, H, W)``.
    """

    steps: list[int]
    scores: Tensor
    to_clean: Tensor
    to_adversarial: Tensor
    purified: Tensor


def course(purifier: RIDE, classify: Callable[[Tensor], Tensor], clean: Tensor, adversarial: Tensor) -> Course:
    """Purifies images under attack and looks at some fifty moments of it."""
    every = max(1, purifier.rounds * purifier.iterations // _POINTS)
    steps: list[int] = []
    points: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(estimation: Estimation) -> None:
        if estimation.steps % every:
            return
        with torch.no_grad():
            pixels = estimation.as_pixels(estimation.estimate())
            distances = [255 * (pixels - other).abs().flatten(1).mean(dim=1) for other in (clean, adversarial)]
            points.append((classify(pixels).softmax(dim=1), distances[0], distances[1]))
        steps.append(estimation.steps)

    purified = replace(purifier, chunk=len(adversarial)).run(adversarial, SampleRNG.default(adversarial), watch)
    scores, to_clean, to_adversarial = (torch.stack(values).cpu() for values in zip(*points, strict=True))
    return Course(steps, scores, to_clean, to_adversarial, purified.detach())


def course_figure(found: Course, labels: Tensor, wrong: Tensor) -> Figure:
    """Class scores and distances against steps (the paper's Fig. 2), a row per image.

    Args:
        found: Of the images.
        labels: Class of each clean image to the classifier, shape ``(N,)``.
        wrong: The same under attack.
    """
    count = len(labels)
    figure = Figure(figsize=(9, 3 * count), layout="constrained")
    axes: Any = figure.subplots(count, 2, squeeze=False)
    for number, (scores, distances) in enumerate(axes):
        for label, name in ((labels[number], "before the attack"), (wrong[number], "under attack")):
            scores.plot(found.steps, found.scores[:, number, int(label)], label=f"class {int(label)}, {name}")
        scores.set(xlabel="step", ylabel="score", ylim=(-0.02, 1.02))
        distances.plot(found.steps, found.to_clean[:, number], label="to the clean image")
        distances.plot(found.steps, found.to_adversarial[:, number], label="to the image under attack")
        distances.set(xlabel="step", ylabel="mean distance, of 255", ylim=(0, None))
        scores.legend(fontsize="small")
        distances.legend(fontsize="small")
    return figure


def before_and_after(classify: Callable[[Tensor], Tensor], **stages: Tensor) -> Figure:
    """Images ``(N, C, H, W)`` by the name of their column, each with its class, a row per image."""
    count = len(next(iter(stages.values())))
    figure = Figure(figsize=(2.2 * len(stages), 2.4 * count), layout="constrained")
    axes: Any = figure.subplots(count, len(stages), squeeze=False)
    with torch.no_grad():
        for column, (name, images) in enumerate(stages.items()):
            classes = classify(images).argmax(dim=1)
            for row, image in enumerate(images.clamp(0, 1).float().cpu()):
                axes[row, column].imshow(image.permute(1, 2, 0).squeeze(2), cmap="gray", vmin=0, vmax=1)
                axes[row, column].set_title(f"{name}: class {int(classes[row])}", fontsize="small")
                axes[row, column].set_axis_off()
    return figure
