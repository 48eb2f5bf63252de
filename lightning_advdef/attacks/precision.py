"""float32 as it is: PyTorch's switches for TF32 and bfloat16, the old ones and the new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _switches() -> list[Any]:
    """What has an ``fp32_precision``, behind what it follows while its own is "none"; nothing before PyTorch 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    # not mkldnn itself: its setter writes that of all backends
    above = [backends, cudnn]
    return [*above, backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def _old_cudnn_switch() -> bool:
    """``allow_tf32`` of cuDNN, while no new switch says "tf32"."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return True  # PyTorch refuses to answer where its old and its new switch disagree


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 and no bfloat16 in place of float32; the caller's settings, old, new or mixed, come back after."""
    switches, precisions = _switches(), []
    for switch in switches:
        precisions.append(switch.fp32_precision)
        switch.fp32_precision = "none"  # from here on the following ones tell their own
    multiplication, convolution = torch.get_float32_matmul_precision(), _old_cudnn_switch()
    try:
        # the old switches, too: PyTorch raises for who reads one that disagrees, such as a network's own code
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(multiplication)
        torch.backends.cudnn.allow_tf32 = convolution
        for switch, precision in zip(switches, precisions, strict=True):
            switch.fp32_precision = precision
