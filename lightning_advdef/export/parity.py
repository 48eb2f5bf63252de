"""Whether an ONNX file answers as the defense that it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.verdict import deployed_logits
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

EQUAL_SHARE = 0.999  # rounding may turn a tie between two classes, though hardly on one image in a thousand


class Parity(NamedTuple):
    """How two implementations of one network compare.

    Attributes:
        images: How many were looked at.
        difference: Largest absolute difference of a logit.
        equal: How many predictions are equal.
    """

    images: int
    difference: float
    equal: int

    def holds(self, tolerance: float) -> bool:
        """Whether logits differ by at most ``tolerance`` and nearly all predictions are equal."""
        return self.difference <= tolerance and self.equal >= EQUAL_SHARE * self.images


def compare_with_file(defense: nn.Module, path: Path, batches: Iterable[Batch]) -> Parity:
    """Runs a file in ONNX Runtime, on the CPU, beside the deployed defense.

    Of each batch the first image passes by itself, so that the file sees batches of different sizes.

    Args:
        defense: What the file was made from.
        path: The file.
        batches: Images of any number.

    Returns:
        The comparison over all batches.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    seen = Parity(0, 0.0, 0)
    for batch in batches:
        for part in (slice(0, 1), slice(1, None)):
            images, indices = batch.images[part], batch.indices[part]
            if len(images):
                expected = deployed_logits(defense, images, SampleRNG.for_images(indices))[0]
                (found,) = session.run(["logits"], {"images": images.numpy()})
                seen = _added(seen, expected, torch.from_numpy(found))
    return seen


def _added(seen: Parity, expected: Tensor, found: Tensor) -> Parity:
    # a NaN would be lost in a maximum of Python's
    difference = torch.tensor([seen.difference, float((expected - found).abs().max())]).max()
    equal = int((expected.argmax(dim=1) == found.argmax(dim=1)).sum())
    return Parity(seen.images + len(expected), float(difference), seen.equal + equal)
