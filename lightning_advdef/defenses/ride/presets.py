"""Settings of the purifier by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from lightning_advdef.defenses.ride.networks import FCN, Architecture, UNet
from lightning_advdef.defenses.ride.purifier import RIDE
from lightning_advdef.types import ImageSpec

Variant = Literal["ride", "dae", "i-dip", "dip"]
Preset = Literal["paper", "released_code", "fast"]
Estimator = Literal["fcn", "unet"]

# DIP and DAE are optimised as long as their iterated relatives, on images that do not move
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "ride": {},
    "dae": {"mixing": 1.0, "suppression": False},
    "i-dip": {"source": "noise", "noisy_target": False},
    "dip": {"source": "noise", "noisy_target": False, "mixing": 1.0, "suppression": False},
}

# the released code draws a mask and does not use it, and takes the norm of the difference and one stochastic output
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "released_code": {
        "noisy_target": False,
        "masked": 0.0,
        "forwards": 1,
        "lr": 1e-3,
        "weight_decay": 1e-5,
        "amsgrad": True,
        "loss": "norm",
    },
    "fast": {"iterations": 400, "lr": 1e-3},
}


def hastened(purifier: RIDE) -> RIDE:
    """A purifier with a fifth of its steps, but not fewer than the fast preset has, at that preset's rate or its own.

    One that is as fast already stays as it is.
    """
    fast = PRESETS["fast"]
    if purifier.iterations <= fast["iterations"]:
        return purifier
    steps = max(purifier.iterations // 5, fast["iterations"])
    return replace(purifier, iterations=steps, lr=max(purifier.lr, fast["lr"]))


def per_image_network(kind: Estimator, spec: ImageSpec) -> Architecture:
    """The network of an image: that of the paper for such data (Table 3), or a U-Net of the same width."""
    if spec.channels == 1:
        network = FCN(width=16, depth=4, dropped=(2, 3))
    elif max(spec.height, spec.width) <= 64:
        network = FCN(width=32, depth=5, dropped=(2, 3))
    else:
        network = FCN(width=32, depth=8, dropped=(4, 5, 6))
    return network if kind == "fcn" else UNet(width=network.width, depth=3)
