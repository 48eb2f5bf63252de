"""The feature smoothing loss."""

from __future__ import annotations

import torch
from torch import Tensor


def feature_loss(features: Tensor) -> Tensor:
    """Mean absolute deviation of each image's features from their one mean, shape ``(N,)``, in at least float32.

    Source: "Can standard training with clean images outperform adversarial one in robust accuracy?" (ICLR 2022
    submission), Eq. 3: bars are absolute values, and the mean is over the whole cube of channels, rows and columns.

    Args:
        features: Shape ``(N, ...)``.
    """
    flat = features.flatten(1)
    # the deviations that matter are smaller than what bfloat16 resolves
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return (flat - flat.mean(dim=1, keepdim=True)).abs().mean(dim=1)
