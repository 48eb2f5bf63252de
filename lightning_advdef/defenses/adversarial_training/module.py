"""The LightningModule of the adversarial training family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from lightning_advdef.attacks import FGM, FGSM, PGD, Attack, FullGradient
from lightning_advdef.attacks.base import refuse_parts
from lightning_advdef.defenses.adversarial_training.batch_statistics import BatchStatistics
from lightning_advdef.defenses.adversarial_training.free import CarriedPerturbation
from lightning_advdef.defenses.adversarial_training.objectives import CrossEntropy, Objective
from lightning_advdef.defenses.adversarial_training.weight_perturbation import Network, perturbed_view
from lightning_advdef.defenses.base import DefenseModule, global_seed
from lightning_advdef.defenses.fixed_examples import FixedExamples, attacked, load_or_make
from lightning_advdef.models import NetworkFactory
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch, Eps

AttackMode = Literal["eval", "train"]
_MADRY = PGD(eps=Eps("8/255"), steps=7, step_size=Eps("2/255"))
_CARRIED = "carried_perturbation"


class AdversarialTrainingModule(DefenseModule):
    """Training on the worst case that an attack finds for each image.

    Source: Madry et al., 2018, https://arxiv.org/abs/1706.06083, Eq. 2.1; this folder's README says which settings are
    which method of the literature. The attack returns its strongest iterate (no image stops when it is fooled, which
    would be friendly training).

    Args:
        network: Architecture, called with the data set's ``ImageSpec``.
        attack: Inner attack; None for the paper's on CIFAR-10, PGD in linf 8/255 with 7 steps of 2/255.
        objective: What is minimised: ``CrossEntropy``, ``TRADES`` or ``MART``; None for the first.
        attack_mode: Mode of batch norm while the attack searches: ``eval`` for running statistics, ``train`` for those
            of the batch. Neither changes the running statistics.
        weight_perturbation: γ of adversarial weight perturbation (AWP); 0 for none.
        weight_perturbation_from: First epoch, counted from 0, with perturbed weights.
        replays: Use every minibatch so many times and update one carried perturbation with the gradient of training
            itself (Free); FGSM or FGM then give norm and eps. None to attack anew in every step.
        fixed_examples: Attack the starting weights once, and train on those images in every epoch (Adv. Train I); needs
            training images that are not augmented.
        kwargs: See :class:`DefenseModule`.

    Raises:
        ValueError: If the attack is made of parts or does not fit, or a number is out of range.
    """

    def __init__(
        self,
        network: NetworkFactory,
        attack: Attack | None = None,
        objective: Objective | None = None,
        attack_mode: AttackMode = "eval",
        weight_perturbation: float = 0.0,
        weight_perturbation_from: int = 0,
        replays: int | None = None,
        fixed_examples: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        # as a default it would lend its norm to every attack that a configuration names without one
        attack = _MADRY if attack is None else attack
        refuse_parts(attack, "adversarial training")
        if attack_mode not in get_args(AttackMode) or not 0 <= weight_perturbation < float("inf"):
            raise ValueError(
                "adversarial training needs attack_mode eval or train and a finite weight_perturbation of at least 0, "
                f"got {attack_mode!r} and {weight_perturbation}"
            )
        self.attack, self.attack_mode = attack, attack_mode
        self.objective = CrossEntropy() if objective is None else objective
        self.weight_perturbation = weight_perturbation
        self.weight_perturbation_from = weight_perturbation_from
        self.replays = replays
        self._carried = None if replays is None else _carried_by(attack, replays, fixed_examples)
        self.fixed_examples = fixed_examples
        self._examples: FixedExamples | None = None

    def loss(self, batch: Batch, rng: SampleRNG) -> dict[str, Tensor]:
        """The objective, and the accuracy on the adversarial images."""
        adversarial = self._adversarial(batch, rng)
        network: Network = self.classifier
        if self.weight_perturbation > 0 and self.current_epoch >= self.weight_perturbation_from:
            fixed = adversarial.detach()
            network = perturbed_view(
                self.classifier,
                lambda candidate: self._objective(candidate, batch, fixed)[0],
                self.weight_perturbation,
                self._mean_over_processes,
            )
        loss, logits = self._objective(network, batch, adversarial)
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        return {"loss": loss, "adversarial_accuracy": accuracy}

    def _adversarial(self, batch: Batch, rng: SampleRNG) -> Tensor:
        """Adversarial images, from wherever this method has them."""
        if self._carried is not None:
            return self._carried.apply(batch.images)
        if self._examples is not None:
            return self._examples[batch.indices]
        surrogate = (FullGradient if self.attack_mode == "eval" else BatchStatistics)(self.classifier)
        return attacked(surrogate, self.attack, batch, rng)

    def _objective(self, network: Network, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the logits of the adversarial images, in one pass of all images that are needed."""
        together = self.objective.needs_clean
        logits = network(torch.cat([batch.images, adversarial]) if together else adversarial)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        clean, attacked = logits.chunk(2) if together else (None, logits)
        return self.objective(clean, attacked, batch.labels), attacked

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        if self._trainer is None:
            return values
        mean: Tensor = self.trainer.strategy.reduce(values, reduce_op="mean")
        return mean

    # fixed examples

    def setup(self, stage: str) -> None:
        """Loads weights; then the fixed examples, which belong to these weights and not to those of a resumed run."""
        super().setup(stage)
        if self.fixed_examples and stage == "fit" and self._examples is None:
            # the module itself is moved to the device after this hook
            target = copy.deepcopy(self.classifier).to(self.trainer.strategy.root_device)
            self._examples = load_or_make(self.trainer, FullGradient(target), self.attack, global_seed())

    # replays

    def on_fit_start(self) -> None:
        """Refuses to replay minibatches whose gradients are accumulated.

        Raises:
            ValueError: If the Trainer accumulates gradients.
        """
        if self.replays is not None and self.trainer.accumulate_grad_batches != 1:
            raise ValueError("replays step after every minibatch: leave out --trainer.accumulate_grad_batches")

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps as often as the minibatch is replayed; each step runs ``training_step`` and its backward pass anew."""
        for _ in range(self.replays or 1):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def on_after_backward(self) -> None:
        """Moves the carried perturbation."""
        if self._carried is not None:
            self._carried.update()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the carried perturbation of all processes where the state of training is kept."""
        if self._carried is not None and self._carried.values is not None and "optimizer_states" in checkpoint:
            gathered = self.all_gather(self._carried.values)
            assert isinstance(gathered, Tensor)
            checkpoint[_CARRIED] = gathered.reshape(-1, *self._carried.values.shape[1:]).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with this process's share of the carried perturbation."""
        if self._carried is not None and _CARRIED in checkpoint:
            shares = checkpoint[_CARRIED].chunk(self.trainer.world_size)
            self._carried.values = shares[self.trainer.global_rank].clone()


def _carried_by(attack: Attack, replays: int, fixed: bool) -> CarriedPerturbation:
    if replays < 1 or fixed or type(attack) not in (FGSM, FGM):
        raise ValueError(
            "replays must be at least 1 and go with FGSM or FGM, whose norm and eps they use, and without "
            f"fixed_examples; got {replays}, {type(attack).__name__} and fixed_examples {fixed}"
        )
    assert isinstance(attack, FGSM)
    return CarriedPerturbation(attack)
