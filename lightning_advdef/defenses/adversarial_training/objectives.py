"""What adversarial training minimises, given logits of clean and of adversarial images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_per_image(clean: Tensor, adversarial: Tensor) -> Tensor:
    """``KL(p(x) || p(x'))`` from logits ``(N, K)``, differentiable in both, shape ``(N,)``."""
    expected = clean.log_softmax(dim=1)
    return (expected.exp() * (expected - adversarial.log_softmax(dim=1))).sum(dim=1)


@dataclass(frozen=True)
class Objective(ABC):
    """A training loss.

    Attributes:
        needs_clean: Whether it looks at the clean images, too; if not, they are spared a pass.
    """

    @property
    def needs_clean(self) -> bool:
        """See the class."""
        return True

    @abstractmethod
    def __call__(self, clean: Tensor | None, adversarial: Tensor, labels: Tensor) -> Tensor:
        """The loss, averaged over the images.

        Args:
            clean: Logits of the clean images, shape ``(N, K)``; None if they are not needed.
            adversarial: Logits of the adversarial images, shape ``(N, K)``.
            labels: True classes, int64, shape ``(N,)``.
        """


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy of adversarial images, mixed with that of clean ones.

    Source: Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572, section 6, with ``clean_weight`` 0.5; Madry et
    al., 2018, https://arxiv.org/abs/1706.06083, Eq. 2.1, with 0.

    Args:
        clean_weight: Share of the clean images (α), in [0, 1].

    Raises:
        ValueError: If the share is not in [0, 1].
    """

    clean_weight: float = 0.0

    def __post_init__(self) -> None:
        """Checks the share."""
        if not 0 <= self.clean_weight <= 1:
            raise ValueError(f"clean_weight is a share and must lie in [0, 1], got {self.clean_weight}")

    @property
    def needs_clean(self) -> bool:
        """Only where they have a weight."""
        return self.clean_weight > 0

    def __call__(self, clean: Tensor | None, adversarial: Tensor, labels: Tensor) -> Tensor:
        """``α CE(f(x), y) + (1 - α) CE(f(x'), y)``."""
        attacked = F.cross_entropy(adversarial, labels)
        if clean is None:
            return attacked
        return self.clean_weight * F.cross_entropy(clean, labels) + (1 - self.clean_weight) * attacked


@dataclass(frozen=True)
class TRADES(Objective):
    """Clean cross-entropy plus the divergence between the predictions for clean and for adversarial images.

    Source: Zhang et al., 2019, https://arxiv.org/abs/1901.08573, Eq. 5. The paper's inner attack maximises that
    divergence: PGD with ``loss: kl_divergence``.

    Args:
        beta: Weight of the divergence (1/λ); the paper's for CIFAR-10 unless stated.

    Raises:
        ValueError: If the weight is negative.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        """Checks the weight."""
        _require_weight(self.beta)

    def __call__(self, clean: Tensor | None, adversarial: Tensor, labels: Tensor) -> Tensor:
        """``CE(f(x), y) + β KL(p(x) || p(x'))``; the gradient flows through both sides of the divergence."""
        assert clean is not None
        return F.cross_entropy(clean, labels) + self.beta * kl_per_image(clean, adversarial).mean()


@dataclass(frozen=True)
class MART(Objective):
    """Boosted cross-entropy of adversarial images, plus a divergence that counts more where the clean one is unsure.

    Source: Wang et al., 2020, https://openreview.net/forum?id=rklOg6EFwS, Eq. 8 to 11. The inner attack maximises the
    cross-entropy.

    Args:
        beta: Weight of the divergence (λ); that of the authors' ResNet-18 unless stated.

    Raises:
        ValueError: If the weight is negative.

    Note:
        ``log(1 - p)`` is taken from the logits, so the constants 1e-4 and 1e-12 of the authors' code are not needed.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        """Checks the weight."""
        _require_weight(self.beta)

    def __call__(self, clean: Tensor | None, adversarial: Tensor, labels: Tensor) -> Tensor:
        """``-log p_y(x') - log(1 - max of p_k(x') over k ≠ y) + β KL(p(x) || p(x')) (1 - p_y(x))``."""
        assert clean is not None
        boosted = F.cross_entropy(adversarial, labels) - _log_of_all_but_the_best_wrong(adversarial, labels).mean()
        doubt = 1 - clean.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
        return boosted + self.beta * (kl_per_image(clean, adversarial) * doubt).mean()


def _log_of_all_but_the_best_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """``log(1 - max of p_k over k ≠ y)`` without cancellation, shape ``(N,)``."""
    wrong = logits.scatter(1, labels.unsqueeze(1), float("-inf")).argmax(dim=1, keepdim=True)
    others = logits.scatter(1, wrong, float("-inf"))
    return torch.logsumexp(others, dim=1) - torch.logsumexp(logits, dim=1)


def _require_weight(beta: float) -> None:
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta is a weight and must be a finite number of at least 0, got {beta}")
