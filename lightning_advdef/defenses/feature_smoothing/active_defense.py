"""Active Defense: noise, then gradient descent on the feature loss until it is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_advdef.attacks.lp_ball import per_image
from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Purified

# a look at who is finished costs a wait for the device, which is worth a few wasted steps of those who are
_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 8}
# numbers in the images that are smoothed together, 3072 in one of CIFAR: more do not fit the caches of a CPU, fewer do
# not fill a GPU
_TOGETHER = {"cpu": 64 * 3072, "cuda": 2048 * 3072}


@dataclass(frozen=True)
class ActiveDefense:
    """Algorithm 1 of the paper, for all images at once.

    Finished images leave the batch and others take their places, so that no image waits for the slowest.

    Args:
        features: Images ``(N, C, H, W)`` to the features ``(N, ...)`` whose loss is reduced.
        noise: Half width of the uniform noise, in pixel units (sigma).
        step_size: Factor on the gradient of an image's own feature loss (beta).
        delta: An image is finished when its feature loss is not above this.
        max_iter: Most steps of an image; one that has taken them stays as it is then.
        clip: Keep pixels in [0, 1]; the paper does not.
        noise_seed: Draw the noise once for all images and calls, from this seed; None for fresh noise.
        fixed_shape: All images of a batch of one shape stay in it until the last is finished.
    """

    features: Callable[[Tensor], Tensor]
    noise: float = 0.075
    step_size: float = 80.0
    delta: float = 0.0124
    max_iter: int = 1000
    clip: bool = False
    noise_seed: int | None = None
    fixed_shape: bool = False

    def init(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Images with noise."""
        if self.noise_seed is not None:
            rng = SampleRNG.for_images(torch.zeros_like(rng.rows), self.noise_seed)
        noise = rng.stream("active defense").uniform(*images.shape[1:], low=-self.noise, high=self.noise)
        return self._clip(images + noise.to(images.dtype))

    def step(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the loop.

        Args:
            images: Shape ``(N, C, H, W)``; with a graph if they require gradients.

        Returns:
            The images after it, unchanged where they were finished, and where they were not, bool, shape ``(N,)``.
        """
        differentiable = torch.is_grad_enabled() and images.requires_grad
        with torch.enable_grad():
            leaf = images if differentiable else images.detach().requires_grad_()
            loss = feature_loss(self.features(leaf))
            (gradient,) = torch.autograd.grad(loss.sum(), leaf, create_graph=differentiable)
        moving = loss.detach() > self.delta
        stepped = self._clip((leaf if differentiable else images) - self.step_size * gradient)
        return torch.where(per_image(moving), stepped, images), moving

    def run(self, images: Tensor, limits: Tensor | None = None) -> Purified:
        """The loop, without a graph.

        Args:
            images: Where to start, shape ``(N, C, H, W)``.
            limits: Most steps of each image, int64, shape ``(N,)``; None for ``max_iter``.
        """
        count, device = len(images), images.device
        images, steps = images.detach().clone(), torch.zeros(count, dtype=torch.int64, device=device)
        limits = torch.full_like(steps, self.max_iter) if limits is None else limits
        capped = torch.zeros_like(steps, dtype=torch.bool)
        together = count if self.fixed_shape else min(count, _images_together(images))
        rows, waiting = torch.arange(together, device=device), together
        while len(rows):
            for _ in range(_STEPS_BETWEEN_LOOKS.get(device.type, 1)):
                moved, above = self.step(images[rows])
                moving = above & (steps[rows] < limits[rows])
                images[rows] = torch.where(per_image(moving), moved, images[rows])
                steps[rows] += moving
                capped[rows] = above & ~moving & (limits[rows] > 0)
            if moving.any() if self.fixed_shape else moving.all():
                continue
            places = together - int(moving.sum())
            newcomers = torch.arange(waiting, min(waiting + places, count), device=device)
            rows, waiting = torch.cat([rows[moving], newcomers]), waiting + len(newcomers)
        return Purified(images, steps, capped)

    def __call__(self, images: Tensor, rng: SampleRNG) -> Purified:
        """Noise and the loop."""
        return self.run(self.init(images, rng))

    def _clip(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1) if self.clip else images


def _images_together(images: Tensor) -> int:
    pixels = _TOGETHER.get(images.device.type, _TOGETHER["cpu"])
    return max(1, pixels // max(1, images[:1].numel()))
