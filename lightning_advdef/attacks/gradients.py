"""The only place where attacks differentiate; passes are booked on the surrogate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import COMPARING, Loss, LossName
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG

# images times gradients in one call of autograd. Measured on a CPU: batching wins by a third where a call is short and
# loses a tenth where it is long (100 images, LeNet and ResNet); on a GPU the bound is for memory
ROWS_PER_CALL = {"cpu": 256, "cuda": 4096}


class LossGradient(NamedTuple):
    """Loss ``(N,)``, its gradient by the images ``(N, C, H, W)`` and the mean logits ``(N, K)``, all detached."""

    loss: Tensor
    gradient: Tensor
    logits: Tensor


def mean_loss(surrogate: Surrogate, images: Tensor, goal: Goal, loss: Loss, rng: SampleRNG) -> tuple[Tensor, Tensor]:
    """Loss of each image, averaged over the surrogate's draws, and the logits averaged likewise.

    The surrogate's auxiliary loss (adaptive attacks) is added; it may use what the pass before it has left.
    """
    parts = []
    for rows in surrogate.chunks(len(images), surrogate.draws):
        logits = surrogate(images[rows], rng[rows])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        draws, count = logits.shape[:2]
        own = goal[rows]
        stacked = own if draws == 1 else own[torch.arange(count, device=logits.device).repeat(draws)]
        losses = loss(logits.flatten(0, 1), stacked).view(draws, count).mean(dim=0)
        auxiliary = surrogate.auxiliary(images[rows], own.labels, rng[rows])
        parts.append((losses if auxiliary is None else losses + auxiliary, logits.mean(dim=0)))
    every_loss, every_logits = zip(*parts, strict=True)
    return torch.cat(every_loss), torch.cat(every_logits)


def with_reference(surrogate: Surrogate, images: Tensor, goal: Goal, loss: LossName, rng: SampleRNG) -> Goal:
    """The goal with the logits of the unperturbed images, from one forward pass, if the loss compares with them."""
    if loss not in COMPARING:
        return goal
    with torch.no_grad():
        logits = surrogate(images, rng.stream("reference"))
    return replace(goal, reference=logits.to(torch.promote_types(logits.dtype, torch.float32)).mean(dim=0))


def reference_cost(loss: LossName) -> Cost:
    """What :func:`with_reference` spends."""
    return Cost(1 if loss in COMPARING else 0, 0)


def _gradient(outputs: Tensor, leaf: Tensor, cotangents: Tensor, batched: bool = False) -> Tensor:
    """Gradient by the images; zero where the defense cuts it, which the books then show."""
    if not outputs.requires_grad:
        return leaf.new_zeros((*cotangents.shape[: int(batched)], *leaf.shape))
    if not batched:
        return _pull_back(outputs, leaf, cotangents)
    together = max(1, ROWS_PER_CALL.get(leaf.device.type, 256) // max(1, len(leaf)))
    parts = [cotangents[first : first + together] for first in range(0, len(cotangents), together)]
    found = [
        _pull_back(outputs, leaf, part, batched=True, again=number < len(parts))
        if len(part) > 1
        else _pull_back(outputs, leaf, part[0], again=number < len(parts)).unsqueeze(0)
        for number, part in enumerate(parts, start=1)
    ]
    return found[0] if len(found) == 1 else torch.cat(found)


def _pull_back(outputs: Tensor, leaf: Tensor, cotangents: Tensor, batched: bool = False, again: bool = False) -> Tensor:
    """One call of autograd, after which the graph is kept if it is needed ``again``."""
    (found,) = torch.autograd.grad(
        outputs, leaf, cotangents, retain_graph=again, is_grads_batched=batched, allow_unused=True
    )
    return leaf.new_zeros((*cotangents.shape[: int(batched)], *leaf.shape)) if found is None else found


def loss_and_gradient(surrogate: Surrogate, images: Tensor, goal: Goal, loss: Loss, rng: SampleRNG) -> LossGradient:
    """Loss of each image and its gradient by that image; images do not influence each other.

    Args:
        surrogate: The classifier to differentiate.
        images: Current iterates, shape ``(N, C, H, W)``.
        goal: What is wanted of the images.
        loss: What to maximise.
        rng: The rows' random numbers for this step.
    """
    parts = []
    for rows in surrogate.chunks(len(images), surrogate.draws):
        leaf = images[rows].detach().requires_grad_()
        losses, logits = mean_loss(surrogate, leaf, goal[rows], loss, rng[rows])
        gradient = _gradient(losses, leaf, torch.ones_like(losses))
        parts.append(LossGradient(losses.detach(), gradient, logits.detach()))
    found = parts[0] if len(parts) == 1 else LossGradient(*(torch.cat(values) for values in zip(*parts, strict=True)))
    surrogate.watch(found.gradient)
    surrogate.count_backward(rng, surrogate.draws, found.gradient)
    return found


def last_look(surrogate: Surrogate, images: Tensor, goal: Goal, loss: Loss, rng: SampleRNG) -> LossGradient:
    """Like :func:`loss_and_gradient` after the last step: one forward pass, and zero in place of the gradient."""
    with torch.no_grad():
        losses, logits = mean_loss(surrogate, images, goal, loss, rng)
    return LossGradient(losses, torch.zeros_like(images), logits)


class Boundaries(NamedTuple):
    """The linearised boundaries between one class of each image and others.

    Attributes:
        logits: Mean logits, shape ``(N, K)``.
        classes: The class to leave and then the others, int64, shape ``(N, 1 + M)``.
        gaps: Logit of each other class minus that of the class to leave, shape ``(N, M)``.
        normals: Gradients of the gaps by the image, shape ``(N, M, C, H, W)``.
    """

    logits: Tensor
    classes: Tensor
    gaps: Tensor
    normals: Tensor


def boundary_chunks(surrogate: Surrogate, count: int, classes: Tensor | int | None) -> list[slice]:
    """Images whose normals fit in memory together; ``classes`` as in :func:`boundaries`.

    Where all classes are asked for, their number shows only in the pass: then each image goes alone.
    """
    if classes is None:
        return surrogate.chunks(count, surrogate.max_rows or 1)
    return surrogate.chunks(count, surrogate.draws * ((classes if isinstance(classes, int) else classes.shape[1]) - 1))


def boundaries(surrogate: Surrogate, images: Tensor, classes: Tensor | int | None, rng: SampleRNG) -> Boundaries:
    """Gaps to other classes and their gradients, in one forward pass and a backward pass per other class.

    Args:
        surrogate: The classifier to differentiate.
        images: Shape ``(N, C, H, W)``.
        classes: The class to leave and then the others, per image, int64, shape ``(N, 1 + M)``; or how many of the
            highest logits to take, the highest being left; None for all.
        rng: The rows' random numbers for this step.
    """
    parts = []
    for rows in boundary_chunks(surrogate, len(images), classes):
        chosen = classes[rows] if isinstance(classes, Tensor) else classes
        parts.append(_boundaries(surrogate, images[rows], chosen, rng[rows]))
    found = parts[0] if len(parts) == 1 else Boundaries(*(torch.cat(values) for values in zip(*parts, strict=True)))
    surrogate.watch(found.normals)
    surrogate.count_backward(rng, surrogate.draws * found.normals.shape[1], found.normals)
    return found


def _boundaries(surrogate: Surrogate, images: Tensor, classes: Tensor | int | None, rng: SampleRNG) -> Boundaries:
    leaf = images.detach().requires_grad_()
    logits = surrogate.mean_logits(leaf, rng)
    if not isinstance(classes, Tensor):
        classes = logits.topk(min(classes or logits.shape[1], logits.shape[1]), dim=1).indices
    scores = logits.detach().gather(1, classes)
    one_hot = torch.nn.functional.one_hot(classes.t(), logits.shape[1]).to(logits.dtype)
    normals = _gradient(logits, leaf, one_hot[1:] - one_hot[:1], batched=True).transpose(0, 1)
    return Boundaries(logits.detach(), classes, scores[:, 1:] - scores[:, :1], normals)


@dataclass(frozen=True)
class TracedLogits:
    """A forward pass that may still be differentiated, once: for attacks that first look where they are.

    Attributes:
        surrogate: The classifier that was asked.
        images: What it was asked about, requiring gradients, shape ``(N, C, H, W)``.
        outputs: Mean logits with their graph, shape ``(N, K)``.
        rng: The rows' random numbers for this pass.
    """

    surrogate: Surrogate
    images: Tensor
    outputs: Tensor
    rng: SampleRNG

    @property
    def logits(self) -> Tensor:
        """Mean logits ``(N, K)``, detached."""
        return self.outputs.detach()

    def gradients(self, cotangents: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Gradients of weighted sums of logits by the image, shape ``(N, M, C, H, W)``.

        Args:
            cotangents: Weights of the logits, shape ``(M, N, K)``.
            wanted: Images whose gradients are used, bool, shape ``(N,)``: passes are booked for these; None for all.
        """
        found = _gradient(self.outputs, self.images, cotangents, batched=True).transpose(0, 1)
        self.surrogate.watch(found)
        if self.surrogate.passes is not None:
            rows = slice(None) if wanted is None else wanted
            self.surrogate.count_backward(self.rng[rows], self.surrogate.draws * len(cotangents), found[rows])
        return found


def traced_logits(surrogate: Surrogate, images: Tensor, rng: SampleRNG) -> TracedLogits:
    """Mean logits of one forward pass of all images, whose graph is kept; images ``(N, C, H, W)``."""
    leaf = images.detach().requires_grad_()
    logits = surrogate(leaf, rng)
    return TracedLogits(surrogate, leaf, logits.to(torch.promote_types(logits.dtype, torch.float32)).mean(dim=0), rng)
