"""What TensorBoard shows of an evaluation: scalars, a curve, images, headline numbers per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from lightning_advdef.attacks import MinimalNormAttack
from lightning_advdef.checkpoints import plain
from lightning_advdef.evaluation.judge import Rows
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.evaluation.summary import attack_norm, robust
from lightning_advdef.metrics import accuracy_norm_curve
from lightning_advdef.types import Batch

_IMAGES = 8


def tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """The Trainer's TensorBoard logger, if it has one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


class Pictures:
    """Collects a few images per scenario while they are judged, and logs everything at the end."""

    def __init__(self) -> None:
        self.examples: dict[str, tuple[Tensor, Tensor, list[str]]] = {}

    def __call__(self, scenario: str, batch: Batch, adversarial: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Keeps the first images of the first batch."""
        if scenario in self.examples:
            return
        count = min(_IMAGES, len(adversarial))
        captions = [
            f"{int(rows['label'][i])}: {int(rows['clean/prediction'][i])} → {int(rows[f'{scenario}/prediction'][i])}"
            for i in range(count)
        ]
        self.examples[scenario] = (batch.images[:count].cpu(), adversarial[:count].cpu(), captions)

    def log(self, trainer: Trainer, rows: Rows, result: Mapping[str, Any], scenarios: Sequence[Scenario]) -> None:
        """Writes scalars, figures and hyper-parameters to TensorBoard; silent without that logger."""
        logger = tensorboard(trainer)
        if logger is None:
            return
        step = trainer.global_step
        metrics = headline(result)
        for name, value in metrics.items():
            logger.experiment.add_scalar(name, value, step)
        for name, (images, adversarial, captions) in self.examples.items():
            logger.experiment.add_figure(f"examples/{name}", image_grid(images, adversarial, captions), step)
        curves = curve_figure(rows, scenarios)
        if curves is not None:
            logger.experiment.add_figure("accuracy_against_norm", curves, step)
        logger.log_hyperparams(_flat(plain(dict(trainer.lightning_module.hparams))), metrics)
        logger.experiment.flush()


def headline(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers by which runs are compared."""
    metrics = {"test/clean_accuracy": result["clean_accuracy"]["value"]}
    for scenario in result["scenarios"]:
        metrics[f"test/robust_accuracy/{scenario['name']}"] = scenario["robust_accuracy"]["value"]
        if "rho" in scenario:
            metrics[f"test/rho/{scenario['name']}"] = scenario["rho"]
    for case in result["worst_case"]:
        metrics[f"test/worst_case_accuracy/{case['norm']}_{case['eps']:.4g}"] = case["accuracy"]["value"]
    return metrics


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def image_grid(images: Tensor, adversarial: Tensor, captions: Sequence[str]) -> Figure:
    """Rows clean, adversarial and difference; a column per image, captioned ``label: before → after``.

    The difference is scaled so that its largest value is white, its negative black, no change grey.
    """
    difference = adversarial - images
    scale = difference.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    rows = (images, adversarial.clamp(0, 1), difference / scale / 2 + 0.5)
    figure = Figure(figsize=(1.3 * len(images) + 0.9, 4.4), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for row, (title, pictures) in enumerate(zip(("clean", "adversarial", "difference"), rows, strict=True)):
        for column, picture in enumerate(pictures):
            axis = axes[row, column]
            shown = picture.permute(1, 2, 0).squeeze(-1).numpy()
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 1:
                axis.set_title(captions[column], fontsize=8)
            if column == 0:
                axis.set_ylabel(title)
    return figure


def curve_figure(rows: Rows, scenarios: Sequence[Scenario]) -> Figure | None:
    """Share of images still right against the norm of their perturbation, for each minimal-norm attack.

    Returns:
        The figure, or None if no scenario looks for minimal norms.
    """
    minimal = [scenario for scenario in scenarios if isinstance(scenario.attack, MinimalNormAttack)]
    if not minimal:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for scenario in minimal:
        norm = attack_norm(scenario.attack)
        broken = robust(rows, scenario.name) < 1
        # an image that is wrong without an attack is broken at norm 0
        norms = torch.where(rows["clean/correct"] < 1, 0.0, rows[f"{scenario.name}/{norm}"])
        radii, share = accuracy_norm_curve(norms, broken)
        axis.step(radii, share, where="post", label=f"{scenario.name} ({norm})")
    axis.set(xlabel="norm of the perturbation (pixels in [0, 1])", ylabel="accuracy", ylim=(0, 1))
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
