"""What Active Defense does to an image and its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_advdef.defenses.feature_smoothing.active_defense import ActiveDefense
from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from lightning_advdef.rng import SampleRNG

_STAGES = ("as it came", "with noise", "smoothed")


def feature_maps(
    purifier: ActiveDefense, classify: Callable[[Tensor], Tensor], clean: Tensor, adversarial: Tensor
) -> Figure:
    """Clean and adversarial images, with noise and smoothed, each with a map of its features (the paper's Fig. 4).

    Shown is the channel that the attack on the image changes most, in one scale for all maps of an image. Titles give
    predicted classes and feature losses.

    Args:
        purifier: Active Defense.
        classify: Images to logits.
        clean: Shape ``(N, C, H, W)``; a block of three rows each.
        adversarial: The same images under attack.
    """
    images = torch.stack([clean, adversarial], dim=1).flatten(0, 1)
    noisy = purifier.init(images, SampleRNG.default(images))
    stages = [images, noisy, purifier.run(noisy).images]
    figure = Figure(figsize=(8, 6.4 * len(clean)), layout="constrained")
    axes = figure.subplots(3 * len(clean), 4, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    with torch.no_grad():
        features = torch.stack([purifier.features(stage).float() for stage in stages])
        classes = torch.stack([classify(stage).argmax(dim=1) for stage in stages])
    for number in range(len(clean)):
        pair = slice(2 * number, 2 * number + 2)
        block = [stage[pair].clamp(0, 1).float().cpu() for stage in stages]
        _draw_block(axes[3 * number : 3 * number + 3], block, features[:, pair].cpu(), classes[:, pair].tolist())
    return figure


def _draw_block(axes: Any, images: Sequence[Tensor], features: Tensor, classes: Sequence[Sequence[int]]) -> None:
    """Three rows of one image: clean, its map, adversarial, its map; features ``(3, 2, C, H, W)``."""
    channel = int((features[0, 1] - features[0, 0]).abs().flatten(1).mean(dim=1).argmax())
    maps = features[:, :, channel]
    for stage, name in enumerate(_STAGES):
        for column, kind in enumerate(("clean", "adversarial")):
            picture, shown = axes[stage, 2 * column : 2 * column + 2]
            picture.imshow(images[stage][column].permute(1, 2, 0).squeeze(2), cmap="gray", vmin=0, vmax=1)
            picture.set_title(f"{kind}, {name}:\nclass {classes[stage][column]}", fontsize="small")
            shown.imshow(maps[stage, column], cmap="viridis", vmin=float(maps.min()), vmax=float(maps.max()))
            loss = float(feature_loss(features[stage])[column])
            shown.set_title(f"channel {channel},\nfeature loss {loss:.4f}", fontsize="small")
