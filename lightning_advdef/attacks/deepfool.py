"""DeepFool: walk to the nearest linearised class boundary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_advdef.attacks.base import MinimalNormAttack
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import boundaries, boundary_chunks
from lightning_advdef.attacks.lp_ball import per_image
from lightning_advdef.attacks.surrogates.base import Surrogate
from lightning_advdef.rng import SampleRNG

STABILISER = 1e-5  # added to the logit gap, so that a point on the boundary still moves across it
OVERSHOOT = 0.02
# A step that is clipped to [0, 1] falls short, so clipped steps creep towards the boundary and end on it. From this
# step on, pixels at a bound are left out of the linearisation and the others make up for them. MNIST, MLP: the norms of
# clipping to the end within 0.01%, in 4 steps instead of 10; doing so from the start would cost 2 to 4% in norm.
_CLIPPED_STEPS = 3


def deepfool_step(gaps: Tensor, normals: Tensor, images: Tensor | None = None) -> Tensor:
    """Smallest l2 move to the nearest of some linearised boundaries.

    Source: Moosavi-Dezfooli et al., 2016, https://arxiv.org/abs/1511.04599, algorithm 2, with the squared norm that
    the closed form needs.

    Args:
        gaps: Score of each other class minus that of the class to leave, shape ``(N, M)``.
        normals: Gradient of each gap by the image, shape ``(N, M, C, H, W)``.
        images: Current images ``(N, C, H, W)`` if pixels must stay in [0, 1]: those at a bound do not move beyond it,
            and the others make up for them.

    Returns:
        Perturbation in pixel units, shape ``(N, C, H, W)``, neither overshot nor clipped.
    """
    if images is not None:
        pixels = images.unsqueeze(1)
        normals = normals.masked_fill(((pixels <= 0) & (normals < 0)) | ((pixels >= 1) & (normals > 0)), 0.0)
    lengths = torch.linalg.vector_norm(normals.flatten(2), dim=2).clamp_min(1e-12)
    distances = (gaps.abs() + STABILISER) / lengths
    nearest = distances.argmin(dim=1)
    image = torch.arange(len(gaps), device=gaps.device)
    return per_image(distances[image, nearest] / lengths[image, nearest]) * normals[image, nearest]


@dataclass(frozen=True)
class DeepFool(MinimalNormAttack):
    """DeepFool with the l2 norm, leaving the predicted class.

    Source: Moosavi-Dezfooli et al., 2016, https://arxiv.org/abs/1511.04599. An image stops when its prediction changes.
    Costs two forward and ``candidates`` - 1 backward passes per step; the first pass also ranks the classes.

    Args:
        steps: Largest number of steps.
        candidates: How many of the highest-scored classes, the predicted one included, are looked at; None for all,
            which is slower than naming their number where memory is bounded.
        overshoot: How far beyond the linearised boundary to go, as a share of the perturbation.
    """

    steps: int = 50
    candidates: int | None = 10
    overshoot: float = OVERSHOOT

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.steps < 1 or (self.candidates is not None and self.candidates < 2) or self.overshoot < 0:
            raise ValueError(
                f"DeepFool needs steps >= 1, candidates >= 2 or null and overshoot >= 0, got {self.steps}, "
                f"{self.candidates} and {self.overshoot}"
            )

    def cost(self, classes: int) -> Cost:
        """A gradient of each gap and a look in every step."""
        return Cost(2 * self.steps, self.steps * (min(self.candidates or classes, classes) - 1))

    def perturb(self, surrogate: Surrogate, images: Tensor, goal: Goal, rng: SampleRNG) -> Tensor:
        """Follows each image until its prediction changes; in float32 also where others search in bfloat16."""
        with surrogate.in_float32():
            return self._follow(surrogate, images, rng)

    def _follow(self, surrogate: Surrogate, images: Tensor, rng: SampleRNG) -> Tensor:
        adversarial = images.clone()
        staying = torch.ones(len(images), dtype=torch.bool, device=images.device)
        rows, classes = torch.arange(len(images), device=images.device), None
        for step in range(self.steps):
            at = adversarial[rows]
            move, classes = self._move(surrogate, at, classes, rng[rows].stream("step", step), step >= _CLIPPED_STEPS)
            # equals x + (1 + overshoot) * sum of all moves, as long as nothing is clipped
            moved = self.clip(at + (1 + self.overshoot) * move)
            with torch.no_grad():
                logits = surrogate.mean_logits(moved, rng[rows].stream("check", step))
            adversarial[rows] = torch.where(per_image(staying[rows]), moved, at)
            staying[rows] &= ~surrogate.fooled(moved, logits, Goal(classes[:, 0]), rng[rows])
            if not staying.any():
                break
            if surrogate.fixed_shape:
                surrogate.working = staying
            else:
                rows, classes = rows[staying[rows]], classes[staying[rows]]
        surrogate.working = None
        return adversarial

    def _move(
        self, surrogate: Surrogate, images: Tensor, classes: Tensor | None, rng: SampleRNG, clipped: bool
    ) -> tuple[Tensor, Tensor]:
        """Each image's step, and its classes if they are not known yet; no more normals than fit in memory at once."""
        moves, ranked = [], []
        for rows in boundary_chunks(surrogate, len(images), self.candidates if classes is None else classes):
            chosen = self.candidates if classes is None else classes[rows]
            found = boundaries(surrogate, images[rows], chosen, rng[rows])
            moves.append(deepfool_step(found.gaps, found.normals, images[rows] if self.box and clipped else None))
            ranked.append(found.classes)
        return torch.cat(moves), torch.cat(ranked)
