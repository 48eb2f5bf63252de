"""PurificationModule: a purifier before a trained classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback
from torch import Tensor, nn

from lightning_advdef.attacks import Surrogate, SurrogateFactory
from lightning_advdef.defenses.base import DefenseModule
from lightning_advdef.models import NetworkFactory
from lightning_advdef.purifiers import Purifier
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access


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

    @property
    def untraceable(self) -> str | None:
        """See the purifier."""
        return self.purifier.untraceable

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


class PurifierGradient(Surrogate):
    """The chain rule through every part of the purifier, with a stand-in where a part has no gradient of its own.

    The answer is that of the deployed defense, bit for bit; see :meth:`Purifier.with_gradient`.

    Args:
        defense: A defense with a :class:`Purifier`.

    Raises:
        ValueError: If it has none.
    """

    access: Access = "adaptive"

    def __init__(self, defense: nn.Module) -> None:
        super().__init__(defense)
        purifier = getattr(self.defense, "purifier", None)
        if not isinstance(purifier, Purifier):
            raise ValueError(f"{type(defense).__name__} has no Purifier to differentiate: attack it with BPDA")
        self.purifier = purifier

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of the deployed defense, shape ``(1, N, K)``."""
        return self.defense.deploy(images, rng.stream("defense"), self.purifier.with_gradient).unsqueeze(0)


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
        """The chain rule through the purifier, whatever it is made of."""
        return {"purifier_gradient": PurifierGradient}
