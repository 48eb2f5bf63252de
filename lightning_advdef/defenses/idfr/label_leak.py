"""Whether a defense reads the class from the perturbation in place of the image."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_advdef.attacks import Attack, Surrogate, Undefended
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.rng import SampleRNG

_GREY = 0.5


class LabelLeak(NamedTuple):
    """Shares of the answers that are the class whose image the perturbation was made for.

    Attributes:
        blank: On a grey image with the perturbation.
        other: On an image of another class with the perturbation.
        blank_without: On the grey image itself: what guessing gives.
        other_without: On the image of another class itself.
    """

    blank: float
    other: float
    blank_without: float
    other_without: float


def label_leak(
    defense: nn.Module,
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    rng: SampleRNG | None = None,
    surrogate: Surrogate | None = None,
) -> LabelLeak:
    """Moves perturbations to images that do not show their class; a defense that sees images answers by those.

    Source: label leaking, Kurakin et al., 2017, https://arxiv.org/abs/1611.01236, section 4.4, as a transplantation. It
    is what accuracy that grows with eps points at. The undefended classifier, probed likewise, says how much of the
    class such a perturbation shows to a network that was never trained on any.

    Args:
        defense: What is probed.
        attack: Makes the perturbations, away from the true class; its ``box`` is lifted.
        images: Clean images in [0, 1], shape ``(N, C, H, W)``, of at least two classes.
        labels: True classes, int64, shape ``(N,)``.
        rng: Of the images; None for seed 0.
        surrogate: What is attacked; None for the undefended classifier.

    Raises:
        ValueError: If all images are of one class.
    """
    rng = SampleRNG.default(images) if rng is None else rng
    # the box would cut the perturbation at the strokes of the image, which then shows in it
    attack = replace(attack, box=False)
    perturbation = attack(surrogate or Undefended(defense), images, labels, rng) - images
    grey, others = torch.full_like(images, _GREY), images[_of_another_class(labels)]

    def read(carriers: Tensor) -> float:
        with attack_mode(defense), torch.no_grad():
            logits = as_defense(defense)(carriers.clamp(0, 1), rng.stream("leak"))
        return float((logits.argmax(dim=1) == labels).float().mean())

    return LabelLeak(read(grey + perturbation), read(others + perturbation), read(grey), read(others))


def _of_another_class(labels: Tensor) -> Tensor:
    """For each image the row of one of another class: half way round in the order of the classes, or further."""
    count = len(labels)
    order = labels.argsort(stable=True)
    largest = int(torch.bincount(labels).max()) if count else 0
    if largest == count:
        raise ValueError(f"label_leak needs images of at least two classes, got {count} of one")
    shifted = torch.empty_like(order)
    shifted[order] = order.roll(-largest)
    same = labels[shifted] == labels
    if same.any():  # a class of more than half of the images comes round to itself
        shifted[same] = (labels != labels[same][0]).nonzero()[0, 0]
    return shifted
