"""Attackers who know some of the parts of IDFR."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from lightning_advdef.attacks import Surrogate
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access

Parts = Literal["target", "denoiser", "all"]


class WithParts(Surrogate):
    """The full gradient of the same networks, deployed with other parts than those that grade.

    Args:
        defense: An :class:`IDFRModule`.
        parts: What answers: the target, with its denoiser, or all that was trained.
    """

    access: Access = "gray"

    def __init__(self, defense: nn.Module, parts: Parts = "denoiser") -> None:
        super().__init__(defense)
        self.parts = parts

    def settings(self) -> dict[str, Any]:
        """The parts."""
        return {"parts": self.parts}

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of these parts, shape ``(1, N, K)``."""
        defense: Any = self.defense
        logits: Tensor = defense.answer(images, self.parts)
        return logits.unsqueeze(0)
