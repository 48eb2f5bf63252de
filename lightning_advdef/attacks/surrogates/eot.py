"""EOT: the mean over a defense's random draws."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from lightning_advdef.attacks.surrogates.base import FullGradient, Surrogate, SurrogateFactory
from lightning_advdef.rng import SampleRNG


class EOT(Surrogate):
    """Expectation over transformation: independent draws of another surrogate, stacked in the batch.

    Source: Athalye et al., 2018, https://arxiv.org/abs/1707.07397, for random defenses section 4.2 of
    https://arxiv.org/abs/1802.00420. Attacks take the mean of the loss, as the first has it. Every step draws anew.

    Args:
        defense: The deployed defense.
        of: What each draw is a draw of.
        samples: Draws per call.

    Raises:
        ValueError: If samples is below 1.
    """

    def __init__(self, defense: nn.Module, of: SurrogateFactory = FullGradient, samples: int = 20) -> None:
        if samples < 1:
            raise ValueError(f"EOT needs at least 1 of samples, got {samples}")
        super().__init__(defense)
        self._average(of(defense), samples)

    @classmethod
    def over(cls, surrogate: Surrogate, samples: int) -> Self:
        """The mean over draws of a surrogate in use, which goes on writing to the same books."""
        averaged = cls.__new__(cls)
        vars(averaged).update(vars(surrogate))
        averaged._average(surrogate, samples)
        return averaged

    def _average(self, inner: Surrogate, samples: int) -> None:
        self.inner, self.samples = inner, samples
        self.access = inner.access
        self.draws = samples * inner.draws

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Those of the inner surrogate."""
        return self.inner.modules

    def settings(self) -> dict[str, Any]:
        """Number of draws and what they are draws of."""
        return {"samples": self.samples, "of": self.inner.describe()}

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of all draws, shape ``(samples * draws of the inner surrogate, N, K)``."""
        drawn = self.inner.logits(images.repeat(self.samples, 1, 1, 1), self._streams(rng))
        return drawn.view(self.draws, len(images), drawn.shape[-1])

    def auxiliary(self, images: Tensor, labels: Tensor, rng: SampleRNG) -> Tensor | None:
        """The inner surrogate's further loss, averaged over the same draws."""
        stacked = images.repeat(self.samples, 1, 1, 1)
        found = self.inner.auxiliary(stacked, labels.repeat(self.samples), self._streams(rng))
        return None if found is None else found.view(self.samples, len(images)).mean(dim=0)

    def _streams(self, rng: SampleRNG) -> SampleRNG:
        own = rng.stream("eot")
        return SampleRNG.cat([own.stream(sample) for sample in range(self.samples)])
