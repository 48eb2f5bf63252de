"""What :func:`evaluate` is given, in the form that it works with; a mistake is named in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_advdef.attacks import Attack
from lightning_advdef.attacks.base import attack_mode, check_images
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.attacks.verdict import exact_arithmetic
from lightning_advdef.evaluation.diagnostics.probes import PROBED
from lightning_advdef.evaluation.judge import JudgeSettings
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.evaluation.suites import read_scenarios
from lightning_advdef.models.outputs import refuse_probabilities, require_classes
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch


def as_batch(images: Any, labels: Any, indices: Any) -> Batch:
    """Images to judge; NumPy arrays become tensors.

    Raises:
        ValueError: If they are not what :func:`evaluate` takes, or there are none.
    """
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    check_images(images, labels)
    if not len(images):
        raise ValueError("there are no images to evaluate")
    indices = torch.arange(len(images)) if indices is None else torch.as_tensor(indices)
    if indices.dtype != torch.int64 or indices.shape != labels.shape or len(set(indices.tolist())) != len(indices):
        raise ValueError(f"indices must be {len(images)} different int64 numbers, one for each image")
    return Batch(images, labels, indices)


def as_scenarios(scenarios: Any) -> Sequence[Scenario]:
    """Scenarios from one or a list of them, or from a suite.

    Raises:
        ValueError: If they are something else, such as a bare attack, or there is no such suite.
    """
    if isinstance(scenarios, str | Path):
        return read_scenarios(scenarios)
    listed = list(scenarios) if isinstance(scenarios, Sequence) else [scenarios]
    for item in listed:
        if not isinstance(item, Scenario):
            name = type(item).__name__
            inside = f"Scenario('{name.lower()}', {name}(...))" if isinstance(item, Attack) else "Scenario(...)"
            raise ValueError(
                f"scenarios must be a list of Scenario, or the name or path of one suite, got {name}: write [{inside}]"
            )
    return listed


def require_logits(model: nn.Module, batch: Batch, device: torch.device, settings: JudgeSettings) -> None:
    """Refuses a network when no verdict and no attack can be made of what it gives for the first images.

    Args:
        model: The network or defense.
        batch: All images.
        device: Where it is.
        settings: How many images it takes at once.

    Raises:
        ValueError: If it gives no logits ``(N, K)`` of at least two classes, or probabilities, or a label is no class.
    """
    name = type(model).__name__
    images, indices = (
        tensor[: min(PROBED, settings.batch_size)].to(device) for tensor in (batch.images, batch.indices)
    )
    with attack_mode(model), torch.no_grad(), exact_arithmetic():
        logits: Any = as_defense(model)(images, SampleRNG.for_images(indices, settings.seed).stream("outputs"))
    got = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise ValueError(
            f"{name} must give logits of shape (N, K) for at least two classes, got {got} for {len(images)} images: "
            "wrap it in a module that returns them (for a single logit z, torch.cat([-z, z], dim=1))"
        )
    refuse_probabilities(name, logits)
    require_classes(name, logits.shape[1], int(batch.labels.max()))
