"""The command line: LightningCLI with an ``evaluation`` group and a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse.typing import register_type
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

# the exports of these packages are what a configuration may name by its short class name
from lightning_advdef import attacks, data, defenses, models  # noqa: F401
from lightning_advdef.callbacks import RobustnessEvaluation
from lightning_advdef.data import DataModule
from lightning_advdef.defenses import DefenseModule
from lightning_advdef.errors import CheckpointError, ResultFolderError
from lightning_advdef.types import Eps

register_type(Eps, serializer=float, deserializer=Eps)


class SaveFitConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder when a training starts."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Only ``fit`` makes a run what it is; a test keeps its settings in ``robustness.json``."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class AdvDefCLI(LightningCLI):
    """``advdef fit | validate | test | predict`` with one run folder ``<runs>/<name>``."""

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        super().__init__(
            DefenseModule,
            DataModule,
            args=args,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "advdef"},
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run folder and the evaluation, and hands the data set's name to the model."""
        parser.add_argument("--name", type=str, default="unnamed", help="Name of the run: its folder under --runs.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder that holds all runs.")
        parser.add_argument("--overwrite", action="store_true", help="Replace what the run folder holds.")
        parser.add_lightning_class_args(RobustnessEvaluation, "evaluation")
        parser.link_arguments("data.spec", "model.init_args.spec", apply_on="instantiate")
        parser.link_arguments("overwrite", "evaluation.overwrite")
        parser.link_arguments(("runs", "name"), "evaluation.folder", compute_fn=lambda runs, name: f"{runs}/{name}")

    @property
    def run_folder(self) -> Path:
        """Where everything of this run goes."""
        return Path(self._get(self.config, "runs"), self._get(self.config, "name"))

    def before_instantiate_classes(self) -> None:
        """Checks the run folder before any data is read.

        Raises:
            ValueError: If ``test`` was given ``--ckpt_path``.
            CheckpointError: If there is nothing to continue.
            ResultFolderError: If the folder holds a training that would be overwritten.
        """
        checkpoint = self._get(self.config, "ckpt_path")
        if self.subcommand == "fit":
            self._check_fit(checkpoint)
        elif checkpoint is not None:
            raise ValueError(
                f"{self.subcommand} takes its settings from the configuration and its weights from --model.weights; "
                "--ckpt_path would bring back the settings of training and is for resuming fit"
            )

    def _check_fit(self, checkpoint: str | None) -> None:
        last = self.run_folder / "checkpoints" / "last.ckpt"
        if checkpoint == "last":
            if not last.is_file():
                raise CheckpointError(
                    f"--ckpt_path last: there is no {last} to continue from; leave it out to start anew"
                )
            self.config[self.subcommand]["ckpt_path"] = str(last)
        elif checkpoint is None and last.is_file() and not self._get(self.config, "overwrite"):
            raise ResultFolderError(
                f"{self.run_folder} already holds a training: continue it with --ckpt_path last, start anew with "
                "--overwrite, or choose another --name"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that logs to TensorBoard and keeps its checkpoints in the run folder."""
        settings = self._get(self.config_init, "trainer", default={})
        folder = self.run_folder
        if settings.get("logger") is None:
            kwargs["logger"] = TensorBoardLogger(folder.parent, name=folder.name, version="", default_hp_metric=False)
        if self.subcommand == "test" and self._get(self.config_init, "evaluation").scenarios:
            kwargs.setdefault("enable_progress_bar", False)
        trainer = super().instantiate_trainer(**kwargs)
        if not any(isinstance(callback, ModelCheckpoint) for callback in settings.get("callbacks") or []):
            self._replace_default_checkpoint(trainer)
        return trainer

    def _replace_default_checkpoint(self, trainer: Trainer) -> None:
        for callback in trainer.checkpoint_callbacks:
            assert isinstance(callback, ModelCheckpoint)
            callback.dirpath = str(self.run_folder / "checkpoints")
            callback.save_last = True

    def after_fit(self) -> None:
        """Stores the weights of the last epoch, without the optimizer, as ``model.ckpt``."""
        path = self.run_folder / "model.ckpt"
        self.trainer.save_checkpoint(path, weights_only=True)
        if self.trainer.is_global_zero:
            print(f"trained weights: {path}\nTensorBoard:     tensorboard --logdir {self.run_folder.parent}")
