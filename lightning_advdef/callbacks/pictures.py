"""What TensorBoard shows of an evaluation: scalars, curves, images, headline numbers per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_advdef.attacks import MinimalNormAttack
from lightning_advdef.checkpoints import plain
from lightning_advdef.evaluation.budgets import budget_charts
from lightning_advdef.evaluation.curves import norm_chart, norm_curve
from lightning_advdef.evaluation.examples import Examples
from lightning_advdef.evaluation.figures import draw, image_grid
from lightning_advdef.evaluation.rows import Rows
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.evaluation.summary import attack_norm, worst_case_name


def tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """The Trainer's TensorBoard logger, if it has one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def log_pictures(
    trainer: Trainer,
    rows: Rows,
    result: Mapping[str, Any],
    scenarios: Sequence[Scenario],
    examples: Mapping[str, Examples],
) -> None:
    """Writes scalars, figures and hyper-parameters to TensorBoard; silent without that logger."""
    logger = tensorboard(trainer)
    if logger is None:
        return
    step = trainer.global_step
    metrics = {f"test/{name}": value for name, value in headline(result).items()}
    for name, value in metrics.items():
        logger.experiment.add_scalar(name, value, step)
    drawn = figures(rows, result, scenarios, examples)
    for name, few in examples.items():
        drawn |= {f"{kind}/{name}": figure for kind, figure in _of_defense(trainer.lightning_module, few).items()}
    for name, figure in drawn.items():
        logger.experiment.add_figure(name, figure, step)
    logger.log_hyperparams(_flat(plain(dict(trainer.lightning_module.hparams))), metrics)
    logger.experiment.flush()


def figures(
    rows: Rows, summary: Mapping[str, Any], scenarios: Sequence[Scenario], examples: Mapping[str, Examples]
) -> dict[str, Figure]:
    """Examples of each scenario, and the curves that there are, by tag.

    Args:
        rows: Columns of all images.
        summary: What :func:`~lightning_advdef.evaluation.summary.summarise` makes of them.
        scenarios: What was run.
        examples: Images by scenario.
    """
    found = {f"examples/{name}": image_grid([few]) for name, few in examples.items()}
    found |= {f"accuracy_against_eps/{norm}": draw(chart) for norm, chart in budget_charts({"": summary}).items()}
    curves = {
        "accuracy_against_norm": curve_figure(rows, scenarios),
        "defense_steps": steps_figure(rows, scenarios),
    }
    return found | {name: curve for name, curve in curves.items() if curve is not None}


def _of_defense(module: Any, examples: Examples) -> Mapping[str, Figure]:
    if not hasattr(module, "figures"):
        return {}
    images = examples.clean.to(module.device), examples.adversarial.to(module.device)
    found: Mapping[str, Figure] = module.figures(*images)
    return found


def steps_figure(rows: Rows, scenarios: Sequence[Scenario]) -> Figure | None:
    """Histograms of the steps of an iterative test-time part, on clean images and under each attack.

    Returns:
        The figure, or None without such a part.
    """
    names = [name for name in ("clean", *(s.name for s in scenarios)) if f"{name}/defense_steps" in rows]
    if not names:
        return None
    figure = Figure(figsize=(6.8, 4.8), layout="constrained")
    axis = figure.subplots()
    steps = [rows[f"{name}/defense_steps"].double().numpy() for name in names]
    axis.hist(steps, bins=30, histtype="step", label=names, linewidth=1.6)
    axis.set(xlabel="steps of the test-time part, mean over votes", ylabel="images")
    axis.legend(frameon=False, fontsize="small")
    return figure


def headline(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers by which runs are compared."""
    metrics = {"clean_accuracy": summary["clean_accuracy"]["value"]}
    for scenario in summary["scenarios"]:
        metrics[f"robust_accuracy/{scenario['name']}"] = scenario["robust_accuracy"]["value"]
        if "rho" in scenario:
            metrics[f"rho/{scenario['name']}"] = scenario["rho"]
    for case in summary["worst_case"]:
        metrics[worst_case_name(case["norm"], case["eps"])] = case["accuracy"]["value"]
    return metrics


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def curve_figure(rows: Rows, scenarios: Sequence[Scenario]) -> Figure | None:
    """Share of images still right against the norm of their perturbation, for each minimal-norm attack.

    Returns:
        The figure, or None if no scenario looks for minimal norms.
    """
    minimal = [(s.name, attack_norm(s.attack)) for s in scenarios if isinstance(s.attack, MinimalNormAttack)]
    if not minimal:
        return None
    curves = tuple(norm_curve(f"{name} ({norm})", rows, name, norm) for name, norm in minimal)
    return draw(norm_chart(curves, "norm of the perturbation"))
