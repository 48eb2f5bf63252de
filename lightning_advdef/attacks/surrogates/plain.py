"""Any network, seen as a defense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Defense, Purify


class PlainNetwork(nn.Module):
    """A network that ignores random numbers, seen as a defense with no test-time part but ``rejects``, if it has it."""

    stochastic = False
    fixed_shape = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        if hasattr(network, "rejects"):
            self.rejects = network.rejects

    @property
    def undefended(self) -> nn.Module:
        """The network itself."""
        return self.network

    def forward(self, images: Tensor, rng: SampleRNG | None = None) -> Tensor:
        """Logits ``(N, K)``."""
        logits: Tensor = self.network(images)
        return logits

    def purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """The images themselves."""
        return images

    def deploy(self, images: Tensor, rng: SampleRNG, purify: Purify) -> Tensor:
        """Logits of the network behind ``purify``."""
        logits: Tensor = self.network(purify(images, rng))
        return logits

    def adaptive_surrogates(self) -> Mapping[str, Any]:
        """None: there is nothing to know beyond the network."""
        return {}


def as_defense(target: nn.Module) -> Defense:
    """The target itself if it is a defense, otherwise the network wrapped as one."""
    if hasattr(target, "adaptive_surrogates"):
        return target  # type: ignore[return-value]
    return PlainNetwork(target)
