"""Settings of IDFR by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from lightning_advdef.errors import require_choice
from lightning_advdef.models import BlockDenoiser, FeatureRestorer, InputDenoiser
from lightning_advdef.types import ImageSpec

Preset = Literal["recommended", "paper", "released_code"]


def settings_of(preset: Preset, spec: ImageSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, and the preset's setting for what is None.

    Raises:
        ValueError: If there is no such preset.
    """
    require_choice("preset", preset, Preset)
    return preset_settings(preset, spec) | {name: value for name, value in given.items() if value is not None}


def preset_settings(preset: Preset, spec: ImageSpec) -> dict[str, Any]:
    """Networks, loss and pairs of a preset.

    Args:
        preset: What the README of this folder recommends, what the paper writes, or what the authors' notebooks do.
        spec: The data: the notebook for MNIST has smaller networks than that for CIFAR.
    """
    recommended = {
        "denoiser": InputDenoiser,
        "restorer": FeatureRestorer,
        "denoiser_loss": "ce",
        "noise_rounds": 2,
        "pairing": "same_class",
    }
    if preset == "recommended":
        return recommended
    if preset == "paper":
        return recommended | {
            "denoiser": partial(InputDenoiser, residual_activation="relu"),
            "pairing": "correct_wrong",
        }
    gray = spec.channels == 1
    return recommended | {
        "denoiser": partial(BlockDenoiser, widths=(32, 64, 128) if gray else (64, 128, 256, 256)),
        "restorer": partial(
            FeatureRestorer, hidden=(128, 64, 32) if gray else (256, 128, 64, 32), batch_norm=True, skips=True
        ),
        "denoiser_loss": "feature_l1",
        "noise_rounds": 0,
    }
