"""What all attacks share: checked input, gradient mode, untouched model, verified output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm
from lightning_advdef.attacks.surrogates.base import Surrogate, as_surrogate
from lightning_advdef.models.modes import same_modes
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Eps, Norm

Needs = Literal["gradients", "scores", "nothing"]

_NORMALISED = 2  # pixels above, and none below 0, are of 0..255; normalised ones are on both sides of 0
# float32 rounding of x + perturbation: of one pixel, and summed over all, relative to the budget and absolute
LINF_TOLERANCE = 1e-6
BUDGET_TOLERANCE = 1e-5


def within_budget(sizes: Tensor, eps: float, norm: str) -> Tensor:
    """Whether each size ``(N,)`` in that norm is at most ``eps``, up to float32 rounding of the perturbed images."""
    if norm == "linf":
        return sizes <= eps + LINF_TOLERANCE
    return sizes <= eps * (1 + BUDGET_TOLERANCE) + BUDGET_TOLERANCE


@contextmanager
def attack_mode(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, frozen parameters and autograd, even inside Lightning's inference mode; all put back after."""
    thawed = [each for module in modules for each in module.parameters() if each.requires_grad]
    try:
        with same_modes(*modules), torch.inference_mode(False), torch.enable_grad():
            for child in (child for module in modules for child in module.modules()):
                child.training = False
            for parameter in thawed:
                parameter.requires_grad_(False)
            yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def check_images(images: Tensor, labels: Tensor) -> None:
    """Refuses what no attack can work on.

    Raises:
        ValueError: If images are not finite float32 ``(N, C, H, W)`` in [0, 1] or labels not classes, int64 ``(N,)``.
    """
    if images.dim() != 4 or images.dtype != torch.float32:
        remedy = ": divide them by 255" if images.dtype == torch.uint8 else ""
        raise ValueError(
            f"images must be float32 of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}{remedy}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be int64 of shape ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"labels must be classes counted from 0, got {int(labels.min())}")
    if not images.isfinite().all():
        raise ValueError("images contain NaN or infinite values: check the data before attacking it")
    if len(images) and (images.min() < 0 or images.max() > 1):
        remedy = (
            "they look normalised by mean and std; give raw pixels in [0, 1] and let the classifier normalise as its "
            "first layer"
        )
        if images.min() >= 0 and images.max() > _NORMALISED:
            remedy = "divide them by 255"
        raise ValueError(f"images must lie in [0, 1], got [{images.min():.4g}, {images.max():.4g}]: {remedy}")


@dataclass(frozen=True)
class Attack(ABC):
    """Settings of an attack; calling it gives adversarial images.

    Args:
        box: Keep pixels in [0, 1]. ``False`` reproduces protocols of papers that attack in a preprocessed space
            without clipping; such results are not images.

    Attributes:
        targetable: Whether it can be sent towards a given class.
    """

    targetable: ClassVar[bool] = False

    _: KW_ONLY
    box: bool = True

    def __call__(
        self,
        surrogate: nn.Module | Surrogate,
        images: Tensor,
        labels: Tensor,
        rng: SampleRNG | None = None,
        target_labels: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images.

        Args:
            surrogate: What to differentiate; a plain network stands for its own full gradient.
            images: Clean images in [0, 1], float32, shape ``(N, C, H, W)``; never written to.
            labels: True classes, int64, shape ``(N,)``.
            rng: The images' random numbers; None means seed 0 and indices 0..N-1.
            target_labels: Classes to reach, int64, shape ``(N,)``; None for any wrong class.

        Returns:
            Images of the same shape, detached, inside [0, 1] and the budget.

        Raises:
            ValueError: If the input is not what the attack can work on, or a label is no class of the surrogate.
            RuntimeError: If the surrogate gives NaN.
        """
        check_images(images, labels)
        if target_labels is not None:
            check_images(images, target_labels)
            if not self.targetable:
                raise ValueError(f"{type(self).__name__} has no targeted variant: call it without target_labels")
            if true := int((target_labels == labels).sum()):
                raise ValueError(f"{true} of {len(labels)} target_labels are the true class: give wrong ones")
        if rng is not None and len(rng) != len(images):
            raise ValueError(f"rng must belong to these {len(images)} images, got one for {len(rng)}: use rng[mask]")
        target = as_surrogate(surrogate)
        with attack_mode(*target.modules):
            # tensors made in inference mode cannot be saved for backward: all of them are copied
            clean = images.detach().clone()
            goal = Goal(labels.clone(), None if target_labels is None else target_labels.clone())
            rng = SampleRNG.default(clean) if rng is None else SampleRNG(rng.keys.clone(), rng.rows.clone())
            classes = torch.cat([labels, labels if target_labels is None else target_labels])
            target.start_watching(clean.device, int(classes.max()) if len(classes) else 0)
            adversarial = self.perturb(target, clean, goal, rng.stream("attack")).detach()
            adversarial = self.clip(adversarial)
            target.refuse_nan()
            self.verify(adversarial, clean)
        return adversarial

    @abstractmethod
    def perturb(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """The attack's own rule; input is checked and detached, gradients are on, the model is in eval mode."""

    @property
    def needs(self) -> Needs:
        """What the attack asks the surrogate for: gradients, scores alone, or nothing at all."""
        return "gradients"

    @property
    def own_draws(self) -> int:
        """Draws of a random defense over which it averages by itself, besides those of the surrogate."""
        return 1

    def cost(self, classes: int) -> Cost:
        """Passes for an image that is never fooled, on data of so many classes; unknown unless an attack says."""
        return Cost(math.nan, math.nan)

    def with_eps(self, eps: float) -> Self:
        """The same attack for another budget; a minimal-norm attack has none."""
        return self

    def within(self, norm: Norm, eps: float) -> Self:
        """The same attack where only perturbations of at most ``eps`` in ``norm`` count; as it is if it has another."""
        return self

    def parts(self) -> Mapping[str, Attack]:
        """Attacks that it is made of, by name, each with an accuracy of its own in the result; none for most."""
        return {}

    def clip(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1], unless the protocol has no box."""
        return images.clamp(0, 1) if self.box else images

    def verify(self, adversarial: Tensor, images: Tensor) -> None:
        """Refuses to return anything outside what was promised.

        Raises:
            RuntimeError: If shape, finiteness, range or budget are violated: a defect of the attack, or of a network
                that gives NaN.
        """
        if adversarial.shape != images.shape or not adversarial.isfinite().all():
            raise RuntimeError(f"{self} produced images that are not finite or have another shape")


def require_positive(**counts: int) -> None:
    """Refuses counts below 1, naming them.

    Raises:
        ValueError: If one is.
    """
    if min(counts.values()) < 1:
        given = " and ".join(str(count) for count in counts.values())
        raise ValueError(f"{' and '.join(counts)} must be at least 1, got {given}")


def require_step(step_size: str | float) -> Eps:
    """A step size as a length in pixel units.

    Raises:
        ValueError: If it is not a finite number above 0.
    """
    length = Eps(step_size)
    if not 0 < length < float("inf"):
        raise ValueError(f"step_size must be above 0, got {float(length)}")
    return length


def refuse_parts(attack: Attack | None, user: str) -> None:
    """Refuses an attack made of parts where only its images would be used.

    It decides about images by itself and fills the surrogate's ledger, which is not the user's.

    Raises:
        ValueError: If the attack is made of parts.
    """
    if attack is not None and attack.parts():
        raise ValueError(
            f"{user} cannot use {type(attack).__name__}, which is made of parts: give it one attack, such as a part of "
            f"it ({', '.join(attack.parts())})"
        )


@dataclass(frozen=True)
class FixedBudgetAttack(Attack):
    """An attack inside a ball of given radius.

    Args:
        eps: Radius in pixel units, may be written ``8/255``; 0 returns the images. Ranges: linf 0..1, l2 0..sqrt(CHW),
            l1 0..CHW.
        norm: Norm of the ball.

    Raises:
        ValueError: If eps is negative, or above 1 for linf.
    """

    eps: Eps
    norm: Norm = "linf"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    def __post_init__(self) -> None:
        """Checks what can be checked without images."""
        if self.norm not in self.norms:
            raise ValueError(f"{type(self).__name__} knows the norms {', '.join(self.norms)}, got {self.norm!r}")
        object.__setattr__(self, "eps", Eps(self.eps))
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"eps must be a finite number of at least 0, got {float(self.eps)}")
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f"eps for linf must lie in 0..1, got {float(self.eps):g}: was it meant in 0-255 units, "
                f"that is {float(self.eps):g}/255?"
            )

    def with_eps(self, eps: float) -> Self:
        """The same attack in a ball of another radius.

        What is given in the units of ``eps`` keeps its proportion to it: an absolute ``step_size``, and the budget of a
        ``start`` attack that has one (at most 1 in linf). From a budget of 0 there is no proportion, and both stay.
        """
        eps = Eps(eps)
        factor = eps / self.eps if self.eps > 0 and eps > 0 else 1.0
        lengths: dict[str, Any] = {"eps": eps}
        if (step_size := getattr(self, "step_size", None)) is not None:
            lengths["step_size"] = Eps(step_size * factor)
        if isinstance(start := getattr(self, "start", None), FixedBudgetAttack):
            scaled = start.eps * factor
            lengths["start"] = start.with_eps(min(scaled, 1.0) if start.norm == "linf" else scaled)
        return replace(self, **lengths)

    def within(self, norm: Norm, eps: float) -> Self:
        """See :meth:`Attack.within`."""
        return self.with_eps(eps) if norm == self.norm else self

    def __call__(
        self,
        surrogate: nn.Module | Surrogate,
        images: Tensor,
        labels: Tensor,
        rng: SampleRNG | None = None,
        target_labels: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Attack.__call__`; also refuses an eps beyond the diameter of the pixel box."""
        self.check_budget(images)
        return super().__call__(surrogate, images, labels, rng, target_labels)

    def check_budget(self, images: Tensor) -> None:
        """Refuses an eps that no two images of this size are apart.

        Raises:
            ValueError: If eps is beyond the diameter of the pixel box.
        """
        size = images[0].numel() if len(images) else 0
        largest = {"linf": 1.0, "l2": size**0.5, "l1": float(size)}[self.norm]
        if size and self.eps > largest:
            raise ValueError(f"eps for {self.norm} on these images must lie in 0..{largest:g}, got {float(self.eps):g}")

    def perturb(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """Searches the ball of radius ``eps`` around every image; one of radius 0 holds the image alone."""
        if self.eps == 0.0:
            return images
        ball = LpBall(self.norm, images.new_full((len(images),), self.eps))
        return self.search(surrogate, images, goal, rng, ball)

    @abstractmethod
    def search(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG, ball: LpBall) -> Tensor:
        """The attack's own rule, in a ball that may have another radius for each image."""

    def verify(self, adversarial: Tensor, images: Tensor) -> None:
        """See :meth:`Attack.verify`; also checks the budget."""
        super().verify(adversarial, images)
        size = lp_norm(adversarial - images, self.norm)
        if not within_budget(size, self.eps, self.norm).all():
            raise RuntimeError(f"{self} left its budget: {size.max():.6g} in {self.norm}")


@dataclass(frozen=True)
class MinimalNormAttack(Attack):
    """An attack that looks for the smallest perturbation that changes the prediction.

    Attributes:
        leaves: Which class it leaves: the ``prediction`` (so images that are wrong already move, too) or the true
            ``label`` (they are done at once).
    """

    leaves: ClassVar[Literal["prediction", "label"]] = "prediction"

    @property
    def size_norm(self) -> Norm:
        """The norm that is minimised."""
        return "l2"

    def within(self, norm: Norm, eps: float) -> Self:
        """See :meth:`Attack.within`."""
        return self.with_eps(eps) if norm == self.size_norm else self
