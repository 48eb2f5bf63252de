"""The ball an attack may move in: each formula of a norm, once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Norm

_TINY = 1e-12  # keeps a zero gradient at zero instead of NaN


def per_image(values: Tensor) -> Tensor:
    """One value per image ``(N,)`` as ``(N, 1, 1, 1)``, ready to broadcast over pixels."""
    return values.view(-1, 1, 1, 1)


def lp_norm(perturbation: Tensor, norm: Norm) -> Tensor:
    """Norm of each image's perturbation, shape ``(N, ...)`` to ``(N,)``."""
    flat = perturbation.flatten(1)
    if norm == "linf":
        return flat.abs().amax(dim=1)
    size: Tensor = torch.linalg.vector_norm(flat, ord=2 if norm == "l2" else 1, dim=1)
    return size


@dataclass(frozen=True)
class LpBall:
    """All perturbations of norm at most ``eps``.

    Attributes:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: Radius of each image's ball in pixel units, shape ``(N,)``.
    """

    norm: Norm
    eps: Tensor

    @property
    def radius(self) -> Tensor:
        """``eps`` in a shape that broadcasts over images ``(N, C, H, W)``."""
        return per_image(self.eps)

    def __getitem__(self, rows: Tensor) -> LpBall:
        """The balls of some of the images."""
        return LpBall(self.norm, self.eps[rows])

    def project(self, perturbation: Tensor) -> Tensor:
        """Nearest point of the ball (for ``l1`` by Duchi et al., 2008), shape ``(N, C, H, W)``."""
        if self.norm == "linf":
            return perturbation.clamp(min=-self.radius, max=self.radius)
        if self.norm == "l2":
            size = per_image(lp_norm(perturbation, "l2")).clamp_min(_TINY)
            return perturbation * (self.radius / size).clamp_max(1.0)
        return self._project_l1(perturbation)

    def _project_l1(self, perturbation: Tensor) -> Tensor:
        flat = perturbation.flatten(1)
        magnitude = flat.abs().sort(dim=1, descending=True).values
        rank = torch.arange(1, flat.shape[1] + 1, device=flat.device)
        threshold = (magnitude.cumsum(dim=1) - self.eps.unsqueeze(1)) / rank
        last = (magnitude > threshold).sum(dim=1, keepdim=True).clamp_min(1) - 1
        shrink = threshold.gather(1, last).clamp_min(0)
        return (flat.sign() * (flat.abs() - shrink).clamp_min(0)).view_as(perturbation)

    def random(self, rng: SampleRNG, shape: torch.Size) -> Tensor:
        """A uniformly random point of each image's ball, shape ``(N, C, H, W)`` given ``shape`` = ``(C, H, W)``."""
        if self.norm == "linf":
            return rng.uniform(*shape, low=-1.0, high=1.0) * self.radius
        distance = per_image(rng.stream("radius").uniform(1) ** (1 / shape.numel()))
        if self.norm == "l2":
            direction = rng.normal(*shape)
        else:
            # exponential magnitudes with random signs are uniform on the l1 sphere after scaling
            direction = -(1 - rng.uniform(*shape)).log() * rng.stream("sign").signs(*shape)
        return direction / per_image(lp_norm(direction, self.norm)).clamp_min(_TINY) * distance * self.radius

    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of norm 1 along which the loss grows fastest; zero where the gradient is zero."""
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            # gradients of a saturated network underflow when squared: scaled by their largest entry they do not
            largest = per_image(lp_norm(gradient, "linf"))
            scaled = gradient / torch.where(largest > 0, largest, 1)
            return scaled / per_image(lp_norm(scaled, "l2")).clamp_min(_TINY)
        flat = gradient.flatten(1)
        largest = flat.abs().argmax(dim=1, keepdim=True)
        step = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign())
        return step.view_as(gradient)

    def ascend(self, points: Tensor, gradient: Tensor, length: Tensor, box: bool) -> Tensor:
        """Points moved by the steepest step of the given length, not projected.

        In l1 the steepest step moves one pixel, and one at its bound would take every later step to be clipped again.
        With a ``box`` it is the steepest that stays in [0, 1]: pixels in the order of their gradients, each to its
        bound, until the length is spent (Croce and Hein, 2021, https://arxiv.org/abs/2103.01208).

        Args:
            points: Where the images are, shape ``(N, C, H, W)``, in [0, 1] if ``box``.
            gradient: Gradient of the loss there, of the same shape.
            length: Norm of each image's step in pixel units, shape ``(N,)``.
            box: Whether pixels are kept in [0, 1].
        """
        if self.norm != "l1" or not box:
            return points + per_image(length) * self.steepest(gradient)
        order = gradient.flatten(1).abs().sort(dim=1, descending=True, stable=True).indices
        room = torch.where(gradient > 0, 1 - points, points * (gradient < 0)).flatten(1).gather(1, order)
        left = length.unsqueeze(1) - (room.cumsum(dim=1) - room)
        moves = torch.zeros_like(room).scatter(1, order, room.minimum(left.clamp_min(0)))
        return points + gradient.sign() * moves.view_as(points)
