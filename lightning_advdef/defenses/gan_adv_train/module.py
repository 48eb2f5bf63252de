"""GANAdvTrainModule: a classifier trained against a generator of perturbations."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lightning_advdef.attacks import FullGradient
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.attacks.generator_attack import class_gradient
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.checkpoints import load_weights
from lightning_advdef.defenses.base import DefenseModule
from lightning_advdef.defenses.gan_adv_train.opponents import generate, meet
from lightning_advdef.models import GeneratorFactory, NetworkFactory, PerturbationGenerator
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch


class GANAdvTrainModule(DefenseModule):
    """Adversarial training with a perturbation generator.

    Source: "Adversarial training with perturbation generator networks" (ICLR 2020 submission). In every step the
    generator makes adversarial images from images, labels and the gradient of the true class's probability; the
    classifier descends their cross-entropy, the generator ascends it less ``penalty`` times their squared l2 norm, both
    from one forward pass and at once. The paper averages all weights with decay 0.998: in YAML, Lightning's
    ``EMAWeightAveraging`` among ``trainer.callbacks``.

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        generator: Architecture of the generator, called likewise.
        penalty: Weight of the mean squared l2 norm of the perturbations (c_L), in squared pixel units; 1 / (2 sigma^2)
            for a target confidence that falls like a Gaussian of width sigma.
        adversarial_weight: Share of adversarial images in the classifier's loss; the rest is that of clean ones.
        gradient_flow: ``detach`` lets the classifier's loss end at the adversarial images. ``through`` passes it on
            through the generator and the gradient that it saw, as the authors' code does; that costs second derivatives
            and invites the classifier to spoil that gradient instead of becoming robust.
        freeze_classifier: Train the generator alone and anew, against the classifier of ``weights``.
        kwargs: See :class:`DefenseModule`; ``optimizer`` and ``scheduler`` are made twice, once for each player.

    Raises:
        ValueError: If a number is out of range, or the frozen classifier would be an untrained one.
    """

    def __init__(
        self,
        network: NetworkFactory,
        generator: GeneratorFactory = PerturbationGenerator,
        penalty: float = 50.0,
        adversarial_weight: float = 1.0,
        gradient_flow: Literal["detach", "through"] = "detach",
        freeze_classifier: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if penalty < 0 or not 0 < adversarial_weight <= 1:
            raise ValueError(
                "penalty must be at least 0 and adversarial_weight in (0, 1], got "
                f"{penalty} and {adversarial_weight}: change --model.penalty or --model.adversarial_weight"
            )
        self.automatic_optimization = False
        self.generator: PerturbationGenerator = generator(self.spec)
        self.penalty = penalty
        self.adversarial_weight = adversarial_weight
        self.gradient_flow = gradient_flow
        self.freeze_classifier = freeze_classifier
        if freeze_classifier:
            self.classifier.requires_grad_(False).eval()

    def loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """Eqs. 2 to 5; the gradient of ``loss`` is for each player that of its own loss.

        The generator's loss is minus the adversarial cross-entropy plus the penalty.
        """
        gradient = self._class_gradient(batch, rng)
        opposed = generate(self.generator, batch.images, batch.labels, gradient)
        clean, adversarial = self._cross_entropies(batch, meet(opposed, self.adversarial_weight))
        squares = (opposed.for_generator - batch.images).square().flatten(1).sum(dim=1)
        penalty = self.penalty * squares.mean()
        classifier_loss = (1 - self.adversarial_weight) * clean + self.adversarial_weight * adversarial
        return {
            "loss": classifier_loss + penalty,
            "classifier_loss": classifier_loss,
            "generator_loss": penalty - adversarial,
            "perturbation_l2": squares.detach().sqrt().mean(),
        }

    def _cross_entropies(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Means over the clean and the adversarial images; the clean ones are passed only if they count."""
        if self.adversarial_weight == 1:
            found = F.cross_entropy(self.classifier(adversarial), batch.labels)
            return torch.zeros_like(found), found
        clean, attacked = self.classifier(torch.cat([batch.images, adversarial])).chunk(2)
        return F.cross_entropy(clean, batch.labels), F.cross_entropy(attacked, batch.labels)

    def _class_gradient(self, batch: Batch, rng: SampleRNG) -> Tensor:
        """Gradient of the true class's probability (Eq. 3), with a graph if the classifier's loss passes through it."""
        goal = Goal(batch.labels)
        if self.gradient_flow == "detach":
            with attack_mode(self.classifier):
                return class_gradient(FullGradient(self.classifier), batch.images, goal, rng)
        images = batch.images.detach().requires_grad_()
        loss = cross_entropy(self.classifier(images), goal)
        (gradient,) = torch.autograd.grad(loss.sum(), images, create_graph=True)
        return -(-loss).exp().view(-1, 1, 1, 1) * gradient

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One backward pass, then a step of each player."""
        loss = super().training_step(batch, batch_idx)
        players = self._players()
        for optimizer in players:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in players:
            optimizer.step()
        if self.scheduler_interval == "step":
            self._step_schedulers()
        return loss.detach()

    def _players(self) -> list[LightningOptimizer]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def on_train_epoch_end(self) -> None:
        """Steps the schedulers, which Lightning leaves to manual optimization."""
        if self.scheduler_interval == "epoch":
            self._step_schedulers()

    def _step_schedulers(self) -> None:
        for configuration in self.trainer.lr_scheduler_configs:
            configuration.scheduler.step()  # type: ignore[call-arg]  # none that waits for a metric

    def configure_optimizers(self) -> Any:
        """An optimizer for each player with anything to train, and its scheduler."""
        players: list[nn.Module] = [self.generator] if self.freeze_classifier else [self.classifier, self.generator]
        optimizers = [self.optimizer_factory(player.parameters()) for player in players]
        if self.scheduler_factory is None:
            return optimizers
        return optimizers, [self.scheduler_factory(optimizer) for optimizer in optimizers]

    def setup(self, stage: str) -> None:
        """See :meth:`DefenseModule.setup`; a fit against a frozen classifier leaves out a generator in ``weights``.

        Raises:
            ValueError: If the generator would be trained against an untrained classifier.
        """
        if stage == "fit" and self.freeze_classifier:
            if self.weights is None:
                raise ValueError("freeze_classifier needs a trained classifier: give its checkpoint as --model.weights")
            load_weights(nn.ModuleDict({"classifier": self.classifier}), self.weights, complete=True)
            self._weights_loaded = True
        super().setup(stage)

    def train(self, mode: bool = True) -> Self:
        """A frozen classifier stays in eval mode."""
        super().train(mode)
        if self.freeze_classifier:
            self.classifier.eval()
        return self
