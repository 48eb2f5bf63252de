"""Adversarial training: cross-entropy on adversarial images that an attack makes for the current weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_advdef.attacks import PGD, Attack, FullGradient
from lightning_advdef.attacks.base import refuse_parts
from lightning_advdef.defenses.base import DefenseModule
from lightning_advdef.models import NetworkFactory
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Eps

_MADRY = PGD(eps=Eps("8/255"), steps=7, step_size=Eps("2/255"))


class AdversarialTrainingModule(DefenseModule):
    """Training on the worst case that an attack finds for each image.

    Source: Madry et al., 2018, https://arxiv.org/abs/1706.06083, Eq. 2.1. The attack sees the network in eval mode
    and returns its strongest iterate (no image stops when it is fooled, which would be friendly training).

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        attack: Inner attack; the paper's for CIFAR-10 unless stated.
        kwargs: See :class:`DefenseModule`.

    Raises:
        ValueError: If the attack is made of parts.
    """

    def __init__(self, network: NetworkFactory, attack: Attack = _MADRY, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        refuse_parts(attack, "adversarial training")
        self.attack = attack

    def loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """Cross-entropy of the adversarial images."""
        surrogate = FullGradient(self.classifier)
        surrogate.strongest = True
        logits = self.classifier(self.attack(surrogate, batch.images, batch.labels, rng))
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        return {"loss": F.cross_entropy(logits, batch.labels), "adversarial_accuracy": accuracy}
