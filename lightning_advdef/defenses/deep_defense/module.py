"""Deep Defense: fine-tuning with a regulariser on the network's own DeepFool perturbation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_advdef.attacks import FGSM, Attack, FullGradient
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.data import DataModule
from lightning_advdef.defenses.base import DefenseModule
from lightning_advdef.defenses.deep_defense.regularizer import (
    batch_norm_eval,
    deep_defense_regularizer,
    regularized_view,
    relative_size,
)
from lightning_advdef.defenses.deep_defense.unrolled_deepfool import plan_paths, replay
from lightning_advdef.defenses.fixed_examples import attacked
from lightning_advdef.metrics import eps_for_accuracy
from lightning_advdef.models import NetworkFactory, shared_dropout_masks
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Eps, Norm


class DeepDefenseModule(DefenseModule):
    """Deep Defense fine-tuning.

    Minimises cross-entropy + weight * (sum over correct of exp(-c r) + sum over wrong of exp(d r)) / N, where r is the
    relative size of the image's unrolled DeepFool perturbation, differentiated through all of its steps.

    Source: Yan et al., 2018, https://arxiv.org/abs/1803.00404, Eq. 3 and 6. Departures are listed in this folder's
    README.

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        spec: Data set by name, or ``CxHxWxK``; the command line fills it from the data.
        weights: Checkpoint of the network to start from; the paper fine-tunes a trained one.
        optimizer: Made from the parameters that train. The default has the values of the authors' code.
        scheduler: Made from the optimizer, stepped every epoch.
        weight: λ, weight of the regulariser.
        c: How fast the reward of a correct image's distance saturates.
        d: How fast the penalty of a wrong image's distance to its class grows.
        steps: DeepFool steps that are unrolled (u).
        norm: Norm of the perturbation.
        candidates: Classes beside the predicted one that DeepFool looks at; None for all, 9 for ImageNet.
        layer: Regularise only this layer's parameters (the paper's Fig. 4), e.g. ``features.0``; None for all.
        adversarial: Attack whose images are mixed into the cross-entropy (Adv. Train II); None for none.
        clean_share: Weight of clean images in that mixture.

    Raises:
        ValueError: If a number is out of range, or the layer is unknown.
    """

    def __init__(
        self,
        network: NetworkFactory,
        spec: str = "mnist",
        weights: str | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(
            parameters, lr=5e-4, momentum=0.9, weight_decay=5e-4
        ),
        scheduler: LRSchedulerCallable | None = None,
        weight: float = 15.0,
        c: float = 25.0,
        d: float = 5.0,
        steps: int = 5,
        norm: Norm = "l2",
        candidates: int | None = None,
        layer: str | None = None,
        adversarial: Attack | None = None,
        clean_share: float = 0.5,
    ) -> None:
        super().__init__(network, spec, weights, optimizer, scheduler)
        if min(weight, c, d) < 0 or steps < 1 or not 0 <= clean_share <= 1:
            raise ValueError(
                "Deep Defense needs weight, c and d >= 0, steps >= 1 and clean_share in 0..1, got "
                f"{weight}, {c}, {d}, {steps} and {clean_share}"
            )
        self.weight, self.c, self.d = weight, c, d
        regularized_view(self.classifier, layer)  # an unknown layer is refused before training
        self.steps, self.norm, self.candidates, self.layer = steps, norm, candidates, layer
        self.adversarial, self.clean_share = adversarial, clean_share

    def loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """Cross-entropy plus regulariser (Eq. 6); BatchNorm is in eval mode, each image keeps its dropout mask."""
        with batch_norm_eval(self.classifier), shared_dropout_masks(self.classifier) as masks:
            cross_entropy = self._cross_entropy(batch, rng)
            network = regularized_view(self.classifier, self.layer)
            path = plan_paths(
                network,
                batch.images,
                batch.labels,
                self.steps,
                norm=self.norm,
                candidates=self.candidates,
                select=masks.select,
            )
            perturbation = replay(network, batch.images, path, select=masks.select)
        regularizer = deep_defense_regularizer(perturbation, batch.images, path.correct, self.c, self.d, self.norm)
        return {
            "loss": cross_entropy + self.weight * regularizer,
            "cross_entropy": cross_entropy,
            "regularizer": regularizer,
            "rho": relative_size(path.perturbation, batch.images, self.norm).mean(),
            "fooled": path.fooled.float().mean(),
        }

    def _cross_entropy(self, batch: Batch, rng: SampleRNG) -> Tensor:
        """On clean images, or mixed with adversarial ones (Goodfellow et al., 2015, section 6)."""
        clean = F.cross_entropy(self.classifier(batch.images), batch.labels)
        if self.adversarial is None:
            return clean
        images = attacked(FullGradient(self.classifier), self.adversarial, batch, rng)
        adversarial = F.cross_entropy(self.classifier(images), batch.labels)
        return self.clean_share * clean + (1 - self.clean_share) * adversarial

    def calibrate(self, data: DataModule) -> dict[str, float]:
        """``eps_ref``: smallest l_inf size of FGSM (clipped to [0, 1]) that leaves half of the test images right."""
        data.prepare_data()
        data.setup("test")
        batches = list(data.test_dataloader())

        def accuracy_at(eps: float) -> float:
            attack = FGSM(Eps(eps))
            right = [
                self(attack(self, images, labels)).argmax(dim=1) == labels
                for images, labels, _ in (Batch(*(tensor.to(self.device) for tensor in batch)) for batch in batches)
            ]
            return float(torch.cat(right).double().mean())

        with attack_mode(self), torch.no_grad():
            return {"eps_ref": eps_for_accuracy(accuracy_at, 0.5, 0.0, 1.0, tolerance=1e-4)}
