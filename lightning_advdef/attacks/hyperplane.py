"""The smallest move of an image onto a hyperplane inside the pixel box."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_advdef.types import Norm

_ROUNDS = 16  # networks on MNIST and CIFAR-10 needed at most 9; what 16 can leave open is said in `_time`
_TOLERANCE = 8  # units of rounding, relative to the gap


def move_to_hyperplane(points: Tensor, normals: Tensor, gaps: Tensor, norm: Norm, box: bool = True) -> Tensor:
    """Smallest moves that change ``<normal, point>`` by ``gap`` and keep pixels in [0, 1].

    Source: Croce and Hein, 2020, https://arxiv.org/abs/1907.02044, section 2.2 and appendix A. Pixels move along the
    sign of the normal, all by the same amount (linf) or in proportion to the normal (l2), until they meet an end of the
    range. Where no move inside the box is enough, the result is the corner that comes closest. Pixels on which the
    normal is zero stay.

    Args:
        points: In [0, 1] if there is a box, shape ``(..., N, D)``.
        normals: Shape ``(N, D)``.
        gaps: What ``<normal, move>`` shall be, shape ``(..., N)``.
        norm: ``linf`` or ``l2``.
        box: Whether pixels have to stay in [0, 1].

    Returns:
        Moves, shape ``(..., N, D)``; the gap is met to a relative 1e-6 in float32.

    Note:
        The authors' code treats slopes below 1e-8 as zero in l2, which leaves images of a saturated network where they
        are; here normals are scaled by their largest entry and no slope is too small.
    """
    largest = normals.abs().amax(dim=-1)
    largest = torch.where(largest > 0, largest, 1)
    slope = normals.abs() / largest.unsqueeze(-1)
    sign = normals.sign() * torch.where(gaps < 0, -1.0, 1.0).to(normals.dtype).unsqueeze(-1)
    end = torch.where(sign > 0, 1 - points, points) if box else torch.full_like(points, torch.inf)
    needed = gaps.abs() / largest
    if norm == "linf":
        return sign * end.minimum(_time(slope, end, needed).unsqueeze(-1))
    speed = slope.clamp_min(torch.finfo(slope.dtype).tiny)
    end = end / speed
    return sign * speed * end.minimum(_time(slope * speed, end, needed).unsqueeze(-1))


def _time(rate: Tensor, end: Tensor, needed: Tensor) -> Tensor:
    """Time ``(..., N)`` at which the sum of ``rate * min(time, end)`` is what is needed; huge if it never is.

    The sum is concave and piecewise linear in the time, so Newton's method from 0 climbs to the answer. What is still
    missing times the sum's slope falls at least fourfold per round (as in Dinkelbach's algorithm), which needs neither
    a sort nor a bisection. An image that is there stays, however long the others take.
    """
    tolerance = _TOLERANCE * torch.finfo(end.dtype).eps
    time = torch.zeros_like(needed)
    moving, travelled = torch.empty_like(end), torch.empty_like(end)
    for _ in range(_ROUNDS):
        torch.gt(end, time.unsqueeze(-1), out=moving)
        pace = torch.linalg.vecdot(moving, rate)
        torch.minimum(end, time.unsqueeze(-1), out=travelled)
        missing = needed - torch.linalg.vecdot(travelled, rate)
        open_ = missing > tolerance * needed
        time = torch.where(open_, (time + missing / pace).clamp_max(torch.finfo(end.dtype).max), time)
        # looking would stop a GPU, for which a few more rounds are cheaper
        if end.device.type == "cpu" and not (open_ & (pace > 0)).any():
            break
    return time
