"""What an attack maximises, one value per image, computed in float32 whatever the network's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lightning_advdef.attacks.goal import Goal

Loss = Callable[[Tensor, Goal], Tensor]
LossName = Literal["cross_entropy", "margin", "dlr", "kl_divergence"]

_TINY = 1e-12  # the authors' constant below DLR's fraction


def cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    """Cross-entropy with the true class; with targets, minus that with the target.

    Written as softplus of log-sum-exp of the wrong logits minus the true one: the usual form loses the true class's
    share of the gradient once its probability rounds to 1, and points an attack on a very sure network astray.

    Args:
        logits: Shape ``(N, K)``.
        goal: What the attack wants of the images.

    Returns:
        Shape ``(N,)``.
    """
    if goal.targets is None:
        true, wrong = _split(logits, goal.labels)
        return F.softplus(wrong.logsumexp(dim=1) - true)
    target, others = _split(logits, goal.targets)
    return -F.softplus(others.logsumexp(dim=1) - target)


def margin(logits: Tensor, goal: Goal) -> Tensor:
    """Best wrong logit minus true logit (Carlini and Wagner, 2017, f6 with kappa 0); positive exactly when reached.

    With targets, the target's logit minus the best other one; minus the true one where every wrong class counts.
    """
    if goal.targets is None:
        true, wrong = _split(logits, goal.labels)
        return wrong.amax(dim=1) - true
    target, others = _split(logits, goal.targets)
    return target - (_at(logits, goal.labels) if goal.any_wrong else others.amax(dim=1))


def dlr(logits: Tensor, goal: Goal) -> Tensor:
    """Difference of logits ratio, which no rescaling of the logits changes.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, Eqs. 6 and 7: the margin over the distance from the
    first logit to the third, with targets over that to the mean of third and fourth. With three classes the
    targeted one is divided by the distance to the third; with two there is no third, and it is the margin.
    """
    steered = goal.targets is not None
    if not steered:
        difference = margin(logits, goal)
    else:
        assert goal.targets is not None
        difference = _at(logits, goal.targets) - _at(logits, goal.labels)
    if logits.shape[1] < 3:
        return difference
    highest = logits.topk(min(4, logits.shape[1]), dim=1).values
    low = (highest[:, 2] + highest[:, 3]) / 2 if steered and highest.shape[1] == 4 else highest[:, 2]
    return difference / (highest[:, 0] - low + _TINY)


def kl_divergence(logits: Tensor, goal: Goal) -> Tensor:
    """Divergence ``KL(p(x) || p(x'))`` of the prediction from that for the unperturbed image.

    Source: Zhang et al., 2019, https://arxiv.org/abs/1901.08573 (TRADES), Eq. 5. It and its gradient are 0 at the image
    itself, so an attack has to start beside it.

    Raises:
        ValueError: If the goal has no reference logits, or targets, for which there is no such loss.
    """
    if goal.reference is None or goal.targets is not None:
        raise ValueError(
            "kl_divergence measures the way from the unperturbed image: it needs an attack that knows that image's "
            "logits (PGD, APGD) and has no targeted variant; use cross_entropy, margin or dlr"
        )
    reference = goal.reference.log_softmax(dim=1)
    return (reference.exp() * (reference - logits.log_softmax(dim=1))).sum(dim=1)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def _split(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of each image's class ``(N,)``, and all logits ``(N, K)`` with minus infinity in its place."""
    return _at(logits, classes), logits.scatter(1, classes.unsqueeze(1), float("-inf"))


LOSSES: dict[LossName, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "kl_divergence": kl_divergence,
}
COMPARING: frozenset[LossName] = frozenset({"kl_divergence"})  # these need ``Goal.reference``
