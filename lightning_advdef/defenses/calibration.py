"""What ``advdef calibrate`` looks at."""

from __future__ import annotations

from collections.abc import Iterator

import torch

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
