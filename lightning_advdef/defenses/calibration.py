"""What ``advdef calibrate`` looks at, and whether a setting or what it found is used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_advdef.data import DataModule
from lightning_advdef.types import Batch


def validation_batches(data: DataModule, device: torch.device) -> Iterator[Batch]:
    """The clean images of the validation split, on a device.

    Raises:
        ValueError: If there is no validation split.
    """
    data.prepare_data()
    data.setup("fit")
    batches = data.val_dataloader()
    if not len(batches):
        raise ValueError("calibration needs a validation split: set --data.val_fraction above 0")
    for batch in batches:
        yield Batch(*(tensor.to(device) for tensor in batch))


def chosen(part: str, name: str, given: float | None, calibrated: Tensor) -> float:
    """The value that was given, or else the calibrated one.

    Args:
        part: What the value belongs to, for the message.
        name: Of the setting.
        given: Value of the setting; None for the calibrated one.
        calibrated: NaN if there is none.

    Raises:
        ValueError: If there is neither.
    """
    found = float(calibrated) if given is None else given
    if math.isnan(found):
        raise ValueError(
            f"{part} has no {name} for this network: give --model.{name}, or find one with advdef calibrate -c CONFIG "
            "--model.weights FILE -o FILE.ckpt"
        )
    return found


def stated(name: str, value: float, given: float | None) -> dict[str, Any]:
    """What results say of a value: itself, and where it is from."""
    return {name: value, f"{name}_from": "calibration" if given is None else "configuration"}
