"""What Square tries next: random windows filled with random signs, for each image its own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_advdef.attacks.lp_ball import LpBall, per_image
from lightning_advdef.rng import SampleRNG

_BLOCK = 64  # queries whose random numbers are drawn in one go: a draw costs as much as a small network's pass
_TINY = 1e-12  # the authors' constant below each norm
_LAST_PLACE = 1  # 1: a window may touch the last row and column; 0: never, as in the authors' code
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # last query of each stage, of 10000


def window_share(query: int, p_init: float) -> float:
    """Share of an image's pixels that a window covers; halved after the authors' queries, whatever the budget."""
    return p_init * 0.5 ** sum(query > last for last in _HALVINGS)


def window_side(length: int, share: float) -> int:
    """Side of a window along an axis of so many pixels; both together cover the ``share`` of a square image."""
    return min(max(round(math.sqrt(share * length * length)), 1), length)


def odd_window_side(length: int, share: float) -> int:
    """The same, at least 3 and odd, so that the l2 pattern has a centre."""
    return min(max(round(math.sqrt(share * length * length)), 3) | 1, length)


def two_lobes(height: int, width: int) -> Tensor:
    """The l2 window's pattern: two halves of opposite sign, each highest at its centre; norm 1.

    Source: Andriushchenko et al., 2020, section 3.3: squares around the centre, the j-th of weight 1/j², are added up,
    and each half has the same norm.

    Returns:
        Shape ``(height, width)``, split along the first axis.
    """
    lobes = [_lobe(height // 2, width), -_lobe(height - height // 2, width)]
    return _normalised(torch.cat(lobes).view(1, 1, -1)).view(height, width)


def _lobe(height: int, width: int) -> Tensor:
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    weights = 1.0 / torch.arange(1, max(height, width) // 2 + 2) ** 2
    lobe = weights.flip(0).cumsum(0).flip(0)[torch.maximum(rows.unsqueeze(1), columns)]
    return _normalised(lobe.view(1, 1, -1)).view(height, width)


class _Draws(NamedTuple):
    """Random numbers of some consecutive queries, which come first.

    Attributes:
        corners: Upper left pixel of each window in the flattened channel, int64, shape ``(Q, windows, N, 1)``.
        signs: Of each channel, shape ``(Q, N, C, 1)``.
        turned: Whether to transpose the pattern, bool, shape ``(Q, N)``.
    """

    corners: Tensor
    signs: Tensor
    turned: Tensor


class Proposals(ABC):
    """The random walk's next images, for the images that are still in the batch.

    Args:
        images: Clean images, shape ``(N, C, H, W)``.
        ball: Where the perturbations have to stay.
        rng: The images' random numbers.
        p_init: Share of an image's pixels that the first windows cover.
        clip: Brings pixels back to their range.
    """

    windows: ClassVar[int]

    def __init__(
        self, images: Tensor, ball: LpBall, rng: SampleRNG, p_init: float, clip: Callable[[Tensor], Tensor]
    ) -> None:
        self.images, self.eps, self.rng = images, ball.eps, rng
        self.p_init, self.clip = p_init, clip
        self.sides = (0, 0)
        self.offsets = images.new_empty(0, dtype=torch.int64)
        self.draws = self._draw(0)

    def keep(self, rows: Tensor) -> None:
        """Forgets all images but those at ``rows``."""
        self.images, self.eps, self.rng = self.images[rows], self.eps[rows], self.rng[rows]
        self.draws = _Draws(self.draws.corners[:, :, rows], self.draws.signs[:, rows], self.draws.turned[:, rows])

    @abstractmethod
    def side(self, length: int, share: float) -> int:
        """Side of a window along an axis of so many pixels."""

    @abstractmethod
    def start(self) -> Tensor:
        """Images to begin with, shape ``(N, C, H, W)``."""

    @abstractmethod
    def change(self, best: Tensor, indices: list[Tensor], signs: Tensor, turned: Tensor) -> Tensor:
        """The next images, given the best so far.

        Args:
            best: Shape ``(N, C*H*W)``.
            indices: Pixels of each window, shape ``(N, C*S)`` for ``S`` pixels per channel.
            signs: Shape ``(N, C, 1)``.
            turned: Whether to transpose the pattern, bool, shape ``(N,)``.
        """

    def propose(self, best: Tensor, query: int) -> Tensor:
        """What to ask at a query; queries have to come in order, shapes ``(N, C, H, W)``."""
        place = query % _BLOCK
        if place == 0 and query:
            self.draws = self._draw(query)
        if (sides := self._sides(query)) != self.sides:
            self.sides = sides
            self.resize(*sides)
        corners, signs, turned = (numbers[place] for numbers in self.draws)
        indices = [corner + self.offsets for corner in corners]
        return self.change(best.flatten(1), indices, signs, turned).view_as(best)

    def resize(self, height: int, width: int) -> None:
        """Prepares for windows of another size."""
        pixels = torch.arange(self.images[0].numel(), device=self.images.device).view(self.images.shape[1:])
        self.offsets = pixels[:, :height, :width].flatten()

    def _sides(self, query: int) -> tuple[int, int]:
        share = window_share(query, self.p_init)
        height, width = self.images.shape[2:]
        return self.side(height, share), self.side(width, share)

    def _draw(self, first: int) -> _Draws:
        """Random numbers for the queries of a block.

        The authors' corners never reach the last row and column, by an off-by-one that every copy of their code has;
        here all places of a window in the image are equally likely.
        """
        rng = self.rng.stream("queries", first)
        channels, height, width = self.images.shape[1:]
        sides = torch.tensor([self._sides(query) for query in range(first, first + _BLOCK)])
        places = (torch.tensor([height, width]) - sides + _LAST_PLACE).to(self.images.device)
        corners = (rng.stream("corners").uniform(_BLOCK, self.windows, 2) * places.unsqueeze(1)).long()
        flat = corners[..., 0] * width + corners[..., 1]
        signs = rng.stream("signs").signs(_BLOCK, channels, 1).transpose(0, 1)
        turned = rng.stream("turned").bits(_BLOCK).t()
        return _Draws(flat.permute(1, 2, 0).unsqueeze(3).contiguous(), signs.contiguous(), turned.contiguous())


class LinfProposals(Proposals):
    """Windows in which each channel moves to one of the two ends of its range."""

    windows = 1

    def side(self, length: int, share: float) -> int:
        """See :func:`window_side`."""
        return window_side(length, share)

    def start(self) -> Tensor:
        """Vertical stripes of random sign."""
        channels, _, width = self.images.shape[1:]
        signs = self.rng.stream("start").signs(channels, 1, width)
        return self.clip(self.images + per_image(self.eps) * signs)

    def change(self, best: Tensor, indices: list[Tensor], signs: Tensor, turned: Tensor) -> Tensor:
        """See :meth:`Proposals.change`.

        The authors add 2 eps and project, which ends at the same corner of the ball.
        """
        clean = self.images.flatten(1).gather(1, indices[0])
        moved = clean.view(*signs.shape[:2], -1) + signs * self.eps.view(-1, 1, 1)
        return best.scatter(1, indices[0], self.clip(moved).flatten(1))


class L2Proposals(Proposals):
    """Mass is moved from one window to another, and what is left of the budget is added."""

    windows = 2

    def side(self, length: int, share: float) -> int:
        """See :func:`odd_window_side`."""
        return odd_window_side(length, share)

    def start(self) -> Tensor:
        """Tiles of the two-lobed pattern with random signs, scaled to the whole budget.

        The authors' tiles have a fifth of the image's side, which is 0 for images of less than 5 pixels; here they have
        at least 1, and as many as fit are centred.
        """
        channels, *lengths = self.images.shape[1:]
        sides = [max(length // 5, 1) for length in lengths]
        counts = [length // side for length, side in zip(lengths, sides, strict=True)]
        signs = self.rng.stream("start").signs(channels, *counts, 1, 1)
        turned = self.rng.stream("start", "turned").bits(1, *counts, 1, 1)
        tiles = signs * torch.where(turned, *self._patterns(*sides))
        grid = tiles.transpose(3, 4).reshape(len(signs), channels, *(n * s for n, s in zip(counts, sides, strict=True)))
        perturbation = torch.zeros_like(self.images)
        top, left = ((length - size) // 2 for length, size in zip(lengths, grid.shape[2:], strict=True))
        perturbation[:, :, top : top + grid.shape[2], left : left + grid.shape[3]] = grid
        return self._scaled(perturbation.flatten(1)).view_as(self.images)

    def resize(self, height: int, width: int) -> None:
        """See :meth:`Proposals.resize`."""
        super().resize(height, width)
        self.patterns = torch.stack(self._patterns(height, width)).flatten(1)

    def change(self, best: Tensor, indices: list[Tensor], signs: Tensor, turned: Tensor) -> Tensor:
        """See :meth:`Proposals.change`; algorithm 3 of the paper."""
        target, source = indices
        shape = (*signs.shape[:2], -1)
        change = best - self.images.flatten(1)
        left = (self.eps.square() - torch.linalg.vector_norm(change, dim=1).square()).clamp_min(0) / shape[1]
        old = change.gather(1, target).view(shape)
        moved = change.gather(1, source).view(shape).square().sum(dim=2)
        change.scatter_(1, source, 0.0)
        # the two windows may overlap: only what the first has beyond the second is counted again
        mass = moved + change.gather(1, target).view(shape).square().sum(dim=2)
        pattern = self.patterns[(~turned).long()].unsqueeze(1) * signs + _normalised(old)
        new = _normalised(pattern) * (left.unsqueeze(1) + mass).sqrt().unsqueeze(2)
        return self._scaled(change.scatter_(1, target, new.flatten(1)))

    def _scaled(self, perturbation: Tensor) -> Tensor:
        """Clean images plus the perturbation at the full budget, shape ``(N, C*H*W)``."""
        scale = self.eps / (torch.linalg.vector_norm(perturbation, dim=1) + _TINY)
        return self.clip(torch.addcmul(self.images.flatten(1), perturbation, scale.unsqueeze(1)))

    def _patterns(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The pattern transposed and as it is."""
        upright, turned = two_lobes(height, width), two_lobes(width, height).t().contiguous()
        return turned.to(self.images), upright.to(self.images)


def _normalised(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=2, keepdim=True)
    return values / (norm + _TINY)
