"""The fit of a stand-in to pairs of images and purified images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_advdef.distillation.pairs import Pairs
from lightning_advdef.models import StandIn
from lightning_advdef.rng import SampleRNG

_BATCH = 32
_PATCHES_OF = 8  # images whose patches are in memory together
_RIDGE = 1e-6
_LEARNING_RATE = 3e-3
_HELD_OUT = 0.1


class Fitted(NamedTuple):
    """A stand-in and its mean squared error on held-out images, beside that of the identity."""

    stand_in: StandIn
    error: float
    identity_error: float


def split(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Pairs to fit and pairs to hold out: a tenth of the images, at least one, in all their versions.

    Returns:
        Each with its versions in one dimension, shape ``(M, C, H, W)``.

    Raises:
        ValueError: If there are fewer than two images.
    """
    count = pairs.images.shape[1]
    if count < 2:
        raise ValueError(f"a stand-in is fitted to some images and tried on others: give at least 2, got {count}")
    first = count - max(1, round(_HELD_OUT * count))
    own, held_out = (
        Pairs(pairs.images[:, rows].flatten(0, 1), pairs.purified[:, rows].flatten(0, 1))
        for rows in (slice(first), slice(first, None))
    )
    return own, held_out


def fit(
    pairs: Pairs,
    epochs: int = 20,
    width: int = 32,
    device: torch.device | str = "cpu",
    report: Callable[[int, float, float], None] = lambda epoch, error, identity: None,
) -> Fitted:
    """Minimises the mean squared error: the linear part by least squares, then what it leaves to the rest by Adam.

    So a linear purifier is found at once, and what others do on average is not left to a few hundred noisy steps.

    Args:
        pairs: Images and purified images.
        epochs: Passes over the pairs, with a learning rate that rises and falls (Smith and Topin, 2017,
            https://arxiv.org/abs/1708.07120).
        width: Filters of the stand-in.
        device: Where it is fitted.
        report: Hears the number of finished epochs and the errors of stand-in and identity on held-out images.
    """
    own, held_out = split(pairs)
    identity = F.mse_loss(held_out.images, held_out.purified).item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stand_in = StandIn(pairs.images.shape[2], width).to(device)
    solve(stand_in.linear, own, device)
    error = mean_error(stand_in, held_out, device)
    report(0, error, identity)
    steps = epochs * -(-len(own.images) // _BATCH)
    optimizer = torch.optim.Adam(stand_in.residual.parameters(), lr=_LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    for epoch in range(epochs):
        for rows in torch.split(_order(len(own.images), epoch), _BATCH):
            images, purified = (tensor[rows].to(device) for tensor in own)
            optimizer.zero_grad()
            torch.autograd.backward(F.mse_loss(stand_in(images), purified))
            optimizer.step()
            scheduler.step()
        error = mean_error(stand_in, held_out, device)
        report(epoch + 1, error, identity)
    return Fitted(stand_in.cpu().eval(), error, identity)


def solve(linear: nn.Conv2d, pairs: Pairs, device: torch.device | str) -> None:
    """Sets weights and bias of a convolution to the least squares fit of pairs ``(M, C, H, W)``.

    A small ridge holds what the images leave open at the identity.
    """
    assert linear.bias is not None
    kernel, channels = linear.kernel_size[0], linear.out_channels
    size = linear.weight[0].numel() + 1
    gram = torch.zeros(size, size, dtype=torch.float64, device=device)
    moment = torch.zeros(size, channels, dtype=torch.float64, device=device)
    for images, purified in zip(*(torch.split(tensor, _PATCHES_OF) for tensor in pairs), strict=True):
        seen = F.pad(F.unfold(images.to(device).double(), kernel, padding=kernel // 2), (0, 0, 0, 1), value=1.0)
        change = (purified - images).to(device).double().flatten(2)
        gram += torch.einsum("ndl,nel->de", seen, seen)
        moment += torch.einsum("ndl,ncl->dc", seen, change)
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(size, dtype=gram.dtype, device=device)
    solution = torch.linalg.solve(gram + ridge, moment).T.to(linear.weight.dtype)
    with torch.no_grad():
        nn.init.dirac_(linear.weight).add_(solution[:, :-1].reshape_as(linear.weight))
        linear.bias.copy_(solution[:, -1])


def mean_error(stand_in: StandIn, pairs: Pairs, device: torch.device | str) -> float:
    """Mean squared error over all pixels of pairs ``(M, C, H, W)``."""
    total = 0.0
    with torch.no_grad():
        for images, purified in zip(*(torch.split(tensor, _BATCH) for tensor in pairs), strict=True):
            total += F.mse_loss(stand_in(images.to(device)), purified.to(device), reduction="sum").item()
    return total / pairs.images.numel()


def _order(count: int, epoch: int) -> Tensor:
    rng = SampleRNG.for_images(torch.arange(count), split="distill", epoch=epoch)
    return rng.stream("order").uniform(1).squeeze(1).argsort(stable=True)
