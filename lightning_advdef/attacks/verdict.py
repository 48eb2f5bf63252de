"""The one function that decides whether an image is classified correctly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.attacks.precision import full_float32
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.errors import NotANumberError
from lightning_advdef.rng import SampleRNG


def verdict_flags() -> dict[str, bool]:
    """The numeric settings under which verdicts are made; stored in every result."""
    return {"autocast": False, "tf32": False, "cudnn_benchmark": False}


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """float32 as it is: no autocast, no TF32, no autotuned kernels; the caller's settings come back after."""
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        with full_float32(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _on_draws(
    defense: nn.Module,
    answer: Callable[[Tensor, SampleRNG], Tensor],
    images: Tensor,
    rng: SampleRNG,
    draws: int,
    stream: str = "grading",
) -> Tensor:
    """What the deployed defense answers, on each draw, shape ``(draws, N, ...)``; draws of a stream are the same."""
    with attack_mode(defense), torch.no_grad(), exact_arithmetic():
        return torch.stack([answer(images, rng.stream(stream, draw)) for draw in range(draws)])


def deployed_logits(defense: nn.Module, images: Tensor, rng: SampleRNG, draws: int = 1) -> Tensor:
    """What the deployed defense answers, on fresh draws.

    Args:
        defense: The defense or any network.
        images: Shape ``(N, C, H, W)``.
        rng: The images' random numbers; the draws are streams of their own, disjoint from those of attacks.
        draws: Independent passes, for a stochastic defense.

    Returns:
        Logits, float32, shape ``(draws, N, K)``.

    Raises:
        NotANumberError: If a logit is NaN, which no comparison of logits would notice.
    """
    logits = unchecked_logits(defense, images, rng, draws)
    if logits.isnan().any():
        raise NotANumberError(
            f"{type(defense).__name__} gave NaN logits, so no prediction can be judged: check weights and settings"
        )
    return logits


def unchecked_logits(defense: nn.Module, images: Tensor, rng: SampleRNG, draws: int = 1) -> Tensor:
    """As :func:`deployed_logits`, for images of which a NaN is a finding and no reason to stop."""
    return _on_draws(defense, as_defense(defense), images, rng, draws).float()


def rejections(defense: nn.Module, images: Tensor, rng: SampleRNG, draws: int = 1) -> Tensor | None:
    """Which images the deployed defense refuses to classify, on the draws of :func:`deployed_logits`.

    Returns:
        Bool, shape ``(draws, N)``; None for a defense that always answers.
    """
    rejects = getattr(defense, "rejects", None)
    return None if rejects is None else _on_draws(defense, rejects, images, rng, draws)


def is_stochastic(defense: nn.Module, images: Tensor, rng: SampleRNG) -> bool:
    """Whether the deployed defense answers differently when asked again.

    A defense may say so itself; all others are asked twice, with fresh random numbers.
    """
    if getattr(defense, "stochastic", False):
        return True
    first, second = _on_draws(defense, as_defense(defense), images, rng, 2, stream="probe")
    return not torch.equal(first, second)
