"""Libraries that know one image at a time, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray

# of purifiers that call such a library
OUTSIDE_TORCH = "it is computed by scikit-image, outside of torch"


def one_by_one(function: Callable[..., Array], *batches: Tensor) -> Tensor:
    """Applies a function of arrays ``(C, H, W)`` to each image.

    Args:
        function: From one array of each batch to a new array of the shape of the first.
        batches: Equally many arrays in each, shape ``(N, ...)``; the function may write to none of them.

    Returns:
        The results, without a graph, shape, dtype and device of the first batch.
    """
    arrays = [_as_array(batch) for batch in batches]
    found = torch.empty_like(batches[0], device="cpu")
    for position, each in enumerate(zip(*arrays, strict=True)):
        found[position] = torch.from_numpy(np.ascontiguousarray(function(*each)))
    return found.to(batches[0].device)


def _as_array(batch: Tensor) -> Array:
    """The same values; NumPy has no bfloat16, and the libraries compute with at least 32 bits."""
    short = batch.dtype in (torch.bfloat16, torch.float16)
    array: Array = (batch.float() if short else batch).detach().cpu().numpy()
    return array
