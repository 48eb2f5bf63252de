"""Shape, classes and pixel statistics of every data set, in one table."""

from __future__ import annotations

import re

from lightning_advdef.types import ImageSpec, Norm

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

SPECS: dict[str, ImageSpec] = {
    spec.name: spec
    for spec in (
        # statistics of the training part of data/digits.py
        ImageSpec("digits", 1, 8, 8, 10, (0.3059,), (0.3763,)),
        ImageSpec("mnist", 1, 28, 28, 10, (0.1307,), (0.3081,)),
        ImageSpec("fashion_mnist", 1, 28, 28, 10, (0.2860,), (0.3530,)),
        ImageSpec("cifar10", 3, 32, 32, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ImageSpec("cifar100", 3, 32, 32, 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ImageSpec("svhn", 3, 32, 32, 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        ImageSpec("imagenet", 3, 224, 224, 1000, _IMAGENET_MEAN, _IMAGENET_STD),
    )
}
_FREE_FORM = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)x([1-9]\d*)")


# what the literature (RobustBench where it has the data set) attacks with, in pixel units
_STANDARD_EPS: dict[str, dict[Norm, float]] = {
    "digits": {"linf": 0.1, "l2": 0.5},
    "mnist": {"linf": 0.3, "l2": 2.0},
    "fashion_mnist": {"linf": 0.1, "l2": 1.5},
    "cifar10": {"linf": 8 / 255, "l2": 0.5},
    "cifar100": {"linf": 8 / 255, "l2": 0.5},
    "svhn": {"linf": 8 / 255, "l2": 0.5},
    "imagenet": {"linf": 4 / 255, "l2": 3.0},
}


def standard_eps(name: str, norm: Norm) -> float | None:
    """The usual budget on a data set, in pixel units; None where there is none."""
    return _STANDARD_EPS.get(name, {}).get(norm)


def get_spec(name: str) -> ImageSpec:
    """The description of a data set.

    Args:
        name: A name of the table, or ``CxHxWxK`` (channels, height, width, classes) such as ``3x64x64x12``. The free
            form has mean 0.5 and standard deviation 0.5 in every channel; a classifier can override both.

    Raises:
        ValueError: If the name is neither.
    """
    if name in SPECS:
        return SPECS[name]
    match = _FREE_FORM.fullmatch(name)
    if match is None:
        raise ValueError(
            f"spec must be one of {', '.join(sorted(SPECS))}, or CxHxWxK such as 3x64x64x12 "
            f"(channels, height, width, classes), got {name!r}"
        )
    channels, height, width, classes = (int(number) for number in match.groups())
    return ImageSpec(name, channels, height, width, classes, (0.5,) * channels, (0.5,) * channels)
