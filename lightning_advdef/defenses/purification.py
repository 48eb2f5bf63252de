"""PurificationModule: a purifier before a trained classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pytorch_lightning import Callback
from torch import Tensor

from lightning_advdef.attacks import BPDA, FullGradient, SurrogateFactory
from lightning_advdef.defenses.base import DefenseModule
from lightning_advdef.models import NetworkFactory
from lightning_advdef.purifiers import Purifier
from lightning_advdef.rng import SampleRNG


class TrainingFreeModule(DefenseModule):
    """Base of defenses that put a purifier before a trained classifier and train nothing themselves.

    It needs the weights of an earlier training of the network, whatever defense they were trained with.

    Attributes:
        purifier: What changes images before they are classified.
    """

    purifier: Purifier

    def put_before(self, purifier: Purifier) -> None:
        """Takes a purifier into use."""
        self.purifier = purifier
        self.stochastic = purifier.stochastic

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """None; the first hook of a run, so that a ``fit`` ends before it reads any data.

        Raises:
            ValueError: If it is asked to train.
        """
        if self.trainer.training:
            raise ValueError(
                f"{type(self).__name__} has nothing to train: fit its network with another configuration, such as one "
                "of configs/standard, and run advdef test with this one and --model.weights FILE"
            )
        return super().configure_callbacks()

    def purify(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """What the purifier makes of images ``(N, C, H, W)``."""
        return self.purifier(images, rng)


class PurificationModule(TrainingFreeModule):
    """Any purifier before any classifier.

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        purifier: What changes images before they are classified.
        kwargs: See :class:`DefenseModule`.
    """

    def __init__(self, network: NetworkFactory, purifier: Purifier, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.put_before(purifier)

    def adaptive_surrogates(self) -> Mapping[str, SurrogateFactory]:
        """BPDA with the purifier's own stand-in, and the full gradient where it means something.

        BPDA with the identity fits any defense, and is named here only where there is nothing else.
        """
        found: dict[str, SurrogateFactory] = {}
        stand_in = self.purifier.stand_in()
        if stand_in is not None:
            found["stand_in"] = partial(BPDA, stand_in=stand_in)
        if self.purifier.differentiable:
            found["full_gradient"] = FullGradient
        if not found:
            found["bpda"] = BPDA
        return found
