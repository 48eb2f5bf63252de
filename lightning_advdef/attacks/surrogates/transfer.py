"""Transfer: the gradient of another network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.attacks.surrogates.plain import as_defense
from lightning_advdef.checkpoints import load_defense, weights_hash
from lightning_advdef.models import NetworkFactory
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Access, ImageSpec


class Transfer(Surrogate):
    """Black box: another network is differentiated, and the deployed defense is not asked.

    Source: Papernot et al., 2016, https://arxiv.org/abs/1605.07277. Give one of ``checkpoint`` and ``network``. Without
    both, ``parts`` are those of the defense itself, attacked as if it were deployed with them: by who knows it.

    Args:
        defense: The deployed defense.
        checkpoint: A ``.ckpt`` of another run of this package; a defense in it is attacked whole, with its test-time
            part.
        network: Makes a network from the data set's ``ImageSpec``, such as a torchvision one with published weights.
        parts: Of a defense made of parts, such as ``IDFRModule``, which ones answer; None for those that it deploys.

    Raises:
        ValueError: If both or none are given, the network is made for other images or classes than the defense, or it
            has no such parts.
        CheckpointError: If the checkpoint cannot be read.
    """

    access: Access = "transfer"

    def __init__(
        self,
        defense: nn.Module,
        checkpoint: str | None = None,
        network: NetworkFactory | None = None,
        parts: str | None = None,
    ) -> None:
        super().__init__(defense)
        self.checkpoint, self.parts = checkpoint, parts
        self._spec = _spec_of(self.defense.undefended) or _spec_of(defense)
        with torch.inference_mode(False):  # no gradient passes through weights that are made inside it
            self.source = self._load(defense, checkpoint, network)
        self._compared = self.source is defense
        if self.source is defense:
            self.access = "adaptive"
        self._source_spec = _spec_of(self.source)
        self._answer = as_defense(self.source) if parts is None else self._answer_of(parts)
        if self._spec is not None and self._source_spec is not None:
            self._require_shape(self._spec.shape)
            self._require_classes(self._source_spec.classes)

    def _load(self, defense: nn.Module, checkpoint: str | None, network: NetworkFactory | None) -> nn.Module:
        if checkpoint is None and network is None and self.parts is not None:
            return defense
        if (checkpoint is None) == (network is None):
            given = "neither" if network is None else "both"
            raise ValueError(f"Transfer needs a checkpoint or a network, got {given}: give exactly one of the two")
        if network is None:
            assert checkpoint is not None
            loaded: nn.Module = load_defense(checkpoint)
            return loaded
        if self._spec is None:
            raise ValueError(
                f"{type(self.defense).__name__} does not say what images it takes, so no network can be made for them: "
                "give Transfer a checkpoint, or attack a defense with a spec"
            )
        return network(self._spec)

    def _answer_of(self, parts: str) -> Callable[[Tensor, SampleRNG], Tensor]:
        answering = getattr(self.source, "answering", None)
        if answering is None:
            raise ValueError(f"Transfer: {self._name} is not made of parts, got parts {parts!r}: leave them out")
        answer: Callable[[Tensor, SampleRNG], Tensor] = answering(parts)
        return answer

    def _warn_of_own_weights(self) -> None:
        """Once, and not before there is an image: weights may be loaded after an attack is bound to its target."""
        if not self._compared:
            self._compared = True
            own, other = (weights_hash(each.undefended) for each in (self.defense, as_defense(self.source)))
            if own == other:
                warnings.warn(
                    f"Transfer: {self._name} has the weights of the network under attack, so this is no black box: "
                    "give an independently trained one, or say surrogate: Undefended",
                    stacklevel=2,
                )

    @property
    def _name(self) -> str:
        return self.checkpoint or type(self.source).__name__

    def _require_shape(self, shape: tuple[int, ...]) -> None:
        if self._source_spec is not None and self._source_spec.shape != shape:
            raise ValueError(
                f"Transfer: {self._name} takes images of shape {self._source_spec.shape}, but the defense's have "
                f"{shape}: give a network for the same data"
            )

    def _require_classes(self, classes: int) -> None:
        if self._spec is not None and self._spec.classes != classes:
            raise ValueError(
                f"Transfer: {self._name} knows {classes} classes, but the defense knows {self._spec.classes}: give a "
                "network for the same data"
            )

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The source; the defense does not run."""
        return (self.source,)

    def settings(self) -> dict[str, Any]:
        """Where the source is from, its class, its weights, and which of its parts answer."""
        return {
            "checkpoint": self.checkpoint,
            "network": type(getattr(self.source, "classifier", self.source)).__name__,
            "weights": self._weights,
            "parts": self.parts,
        }

    @cached_property
    def _weights(self) -> str:
        return weights_hash(self.source)

    def logits(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Logits of the source, shape ``(1, N, K)``."""
        self._require_shape(tuple(images.shape[1:]))
        self._warn_of_own_weights()
        self.follow(images, self.source)
        found = self._answer(images, rng.stream("transfer"))
        self._require_classes(found.shape[1])
        return found.unsqueeze(0)


def _spec_of(network: object) -> ImageSpec | None:
    spec = getattr(network, "spec", None)
    return spec if isinstance(spec, ImageSpec) else None
