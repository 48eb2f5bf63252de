"""The feature restorer of IDFR: a bottleneck of dense layers from embeddings to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_advdef.models.initialization import kaiming_init


class FeatureRestorer(nn.Module):
    """Dense layers that narrow and widen again, with ReLU after each, the last included.

    Source: "Enhanced countering adversarial attacks via input denoising and feature restoring" (ICLR 2022 submission),
    Table 7: 512-256-128-32-128-256-512, 337,184 parameters. The paper gives no other width, so the inner layers stay.
    The authors' notebooks have ``hidden: [256, 128, 64, 32]``, ``batch_norm`` and ``skips``; theirs end at the first
    layer's width where that is the embeddings', here one more layer follows.

    Args:
        features: Width of the embeddings (d).
        hidden: Widths down to the narrowest; they come back in reverse order.
        batch_norm: Whether batch normalisation stands before each ReLU.
        skips: Whether the output of each layer on the way down is added to that of its width on the way up.

    Raises:
        ValueError: If a width is not positive, or there is none.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (256, 128, 32),
        batch_norm: bool = False,
        skips: bool = False,
    ) -> None:
        super().__init__()
        if not hidden or min(features, *hidden) < 1:
            raise ValueError(f"FeatureRestorer needs widths of at least 1, got {features} and {list(hidden)}")
        self.skips = skips
        widths = [features, *hidden]
        self.down = _layers(widths, batch_norm)
        self.up = _layers(widths[::-1], batch_norm)
        kaiming_init(self)

    def forward(self, features: Tensor) -> Tensor:
        """Restored embeddings ``(N, d)`` of embeddings of the same shape."""
        kept = []
        for layer in self.down:
            features = layer(features)
            kept.append(features)
        for number, layer in enumerate(self.up, start=2):
            features = layer(features)
            if self.skips and number <= len(kept):
                features = features + kept[-number]
        return features


RestorerFactory = Callable[[int], FeatureRestorer]


def _layers(widths: Sequence[int], batch_norm: bool) -> nn.ModuleList:
    """A layer from each width to the next."""
    return nn.ModuleList(
        nn.Sequential(nn.Linear(before, after), *([nn.BatchNorm1d(after)] if batch_norm else []), nn.ReLU())
        for before, after in pairwise(widths)
    )
