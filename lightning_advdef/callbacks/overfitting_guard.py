"""OverfittingGuard: notices when single-step adversarial training has learned to fool the single step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_advdef.callbacks.robustness import PREFIX, robust_accuracies


class OverfittingGuard(Callback):
    """Watches for catastrophic overfitting, and keeps the last checkpoint before it, within ``fall / 4`` of the best.

    Source: Wong et al., 2020, https://arxiv.org/abs/2001.03994, section 5.4, which named it, and Andriushchenko and
    Flammarion, 2020, https://arxiv.org/abs/2007.02617: within an epoch or two, accuracy under a multi-step attack
    collapses while accuracy under a single step stays or rises. (Where both fall, something else is wrong.)

    Note:
        The authors' code compares PGD-5 on one training batch with the epoch before; this takes the validation images
        and the best epoch so far, so that a collapse in two halves is noticed, too.

    Args:
        multi_step: Scenario of ``evaluation.fit_scenarios`` whose accuracy collapses.
        single_step: Scenario of ``evaluation.fit_scenarios`` whose accuracy does not.
        fall: How far below its best an accuracy counts as fallen, in (0, 1); 0.2 is the authors' code's.
        action: Whether the training stops, or only says so.

    Raises:
        ValueError: If fall is not in (0, 1).
    """

    def __init__(
        self,
        multi_step: str = "pgd10",
        single_step: str = "fgsm",
        fall: float = 0.2,
        action: Literal["stop", "warn"] = "stop",
    ) -> None:
        if not 0 < fall < 1:
            raise ValueError(f"fall must be in (0, 1), got {fall}")
        self.multi_step = multi_step
        self.single_step = single_step
        self.fall = fall
        self.action = action
        self.best = {multi_step: 0.0, single_step: 0.0}
        self.kept = 0.0
        self.collapsed = False

    def checkpoint(self, trainer: Trainer) -> Path:
        """Where the last good checkpoint is."""
        return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last_good.ckpt"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps a checkpoint of a good epoch; at the first bad one says so, and stops.

        Raises:
            ValueError: If the accuracies it watches are not logged.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        found = robust_accuracies(trainer)
        missing = [name for name in self.best if PREFIX + name not in trainer.callback_metrics]
        if missing:
            raise ValueError(
                f"OverfittingGuard watches {PREFIX}{missing[0]}, which nothing logs: add "
                "-c configs/trainer/robust_validation.yaml, or name scenarios of evaluation.fit_scenarios"
            )
        if found:
            self._look_at(found, trainer, pl_module)

    def _look_at(self, found: dict[str, float], trainer: Trainer, pl_module: LightningModule) -> None:
        before = self.collapsed
        fallen = {name: found[name] < best - self.fall for name, best in self.best.items()}
        self.collapsed = fallen[self.multi_step] and not fallen[self.single_step]
        if self.collapsed and not before:
            pl_module.print(self._sentence(found, trainer))
            trainer.should_stop = trainer.should_stop or self.action == "stop"
        elif not fallen[self.multi_step]:
            self.best = {name: max(best, found[name]) for name, best in self.best.items()}
            self._keep(found[self.multi_step], trainer)

    def _keep(self, accuracy: float, trainer: Trainer) -> None:
        """A collapse may take two epochs, of which the first is no longer good."""
        if accuracy >= self.best[self.multi_step] - self.fall / 4:
            self.kept = accuracy
            trainer.save_checkpoint(self.checkpoint(trainer), weights_only=False)

    def _sentence(self, found: dict[str, float], trainer: Trainer) -> str:
        return (
            f"catastrophic overfitting in epoch {trainer.current_epoch}: {self.multi_step} accuracy fell from "
            f"{100 * self.best[self.multi_step]:.1f}% to {100 * found[self.multi_step]:.1f}% while {self.single_step} "
            f"has {100 * found[self.single_step]:.1f}%; the last good weights, of {100 * self.kept:.1f}%, are in "
            f"{self.checkpoint(trainer)}"
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training has to know."""
        return {"best": self.best, "kept": self.kept, "collapsed": self.collapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.best, self.kept, self.collapsed = (state_dict[name] for name in ("best", "kept", "collapsed"))
