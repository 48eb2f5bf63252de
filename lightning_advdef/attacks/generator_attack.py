"""A trained perturbation generator as an attack."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_advdef.attacks.base import Attack
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import loss_and_gradient
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.checkpoints import load_defense
from lightning_advdef.errors import CheckpointError
from lightning_advdef.models import PerturbationGenerator
from lightning_advdef.rng import SampleRNG


def class_gradient(surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
    """Gradient of each image's true-class probability by its pixels, shape ``(N, C, H, W)``; one gradient per image.

    It is ``-p`` times the gradient of the cross-entropy, which stays exact where ``p`` rounds to 1.
    """
    found = loss_and_gradient(surrogate, images, goal, cross_entropy, rng)
    return -(-found.loss).exp().view(-1, 1, 1, 1) * found.gradient


@dataclass(frozen=True)
class GeneratorAttack(Attack):
    """One pass of a generator that was trained by :class:`GANAdvTrainModule`, on the gradient of the attacked network.

    Source: "Adversarial training with perturbation generator networks", Fig. 3. It is neither bounded nor minimal: the
    penalty it was trained with decides how much it moves each image, so it is read as accuracy against mean norm.

    Args:
        checkpoint: A ``.ckpt`` of that module, read at the first call; its classifier is not used.
    """

    checkpoint: str

    def cost(self, classes: int) -> Cost:
        """One gradient; the generator's own pass is not one of the network's."""
        return Cost(1, 1)

    def perturb(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """``G(x, grad p_y, y)``."""
        gradient = class_gradient(surrogate, images, goal, rng)
        generator = self._generator(images)
        with torch.no_grad():
            adversarial: Tensor = generator(images, goal.labels, gradient)
        return adversarial

    def _generator(self, images: Tensor) -> PerturbationGenerator:
        path = Path(self.checkpoint)
        generator = _load(self.checkpoint, path.stat().st_mtime_ns if path.is_file() else 0).to(images.device)
        if images.shape[1:] != generator.spec.shape:
            raise ValueError(
                f"the generator in {self.checkpoint} makes images of shape {generator.spec.shape}, got "
                f"{tuple(images.shape[1:])}: give one that was trained on the same kind of data"
            )
        return generator


@functools.lru_cache(maxsize=8)
def _load(checkpoint: str, modified: int) -> PerturbationGenerator:
    """The generator of a file, read again when the file changed."""
    with torch.inference_mode(False):
        generator = getattr(load_defense(checkpoint), "generator", None)
    if not isinstance(generator, PerturbationGenerator):
        raise CheckpointError(f"{checkpoint} holds no perturbation generator: give a checkpoint of GANAdvTrainModule")
    return generator
