"""The command line: LightningCLI with an ``evaluation`` group and a run folder."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse.typing import register_type
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch.backends.cpu import get_cpu_capability
from yaml import MarkedYAMLError

# the exports of these packages are what a configuration may name by its short class name
from lightning_advdef import attacks, callbacks, data, defenses, models, purifiers  # noqa: F401
from lightning_advdef.callbacks import EpochLine, RobustnessEvaluation
from lightning_advdef.checkpoints import read_checkpoint
from lightning_advdef.data import DataModule
from lightning_advdef.defenses import DefenseModule
from lightning_advdef.errors import CheckpointError, ResultFolderError
from lightning_advdef.models import Classifier
from lightning_advdef.requeue import checkpoints, checkpoints_of_job, forget_signals, note_job
from lightning_advdef.types import Eps

register_type(Eps, serializer=float, deserializer=Eps)


class StartTraining(SaveConfigCallback):
    """Writes ``config.yaml`` when a training starts, and only then removes the one that it replaces.

    By then data and weights are loaded, so a mistake in the settings costs no earlier training.

    Args:
        args: See the base class.
        folder: The run folder.
        replaced: Files of the earlier training.
        kwargs: See the base class.
    """

    def __init__(self, *args: Any, folder: Path, replaced: Sequence[Path] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folder = folder
        self.replaced = replaced

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet; a test keeps its settings in ``robustness.json``."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes, then writes."""
        if trainer.is_global_zero:
            for path in self.replaced:
                path.unlink(missing_ok=True)
            note_job(self.folder)
        if self.replaced:
            # from now on; see ``_place_of_signals``
            trainer._default_root_dir = str(self.folder)  # type: ignore[attr-defined]
        super().setup(trainer, pl_module, "fit")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says what is kept of a training that the user interrupts."""
        fitting = isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "fit"
        kept = checkpoints(self.folder) if fitting else []
        if kept and trainer.is_global_zero:
            print(f"interrupted in epoch {trainer.current_epoch}: --ckpt_path last continues from {kept[-1]}")


def _parse_file(parse: Callable[..., Any], path: str, **kwargs: Any) -> Any:
    try:
        return parse(path, **kwargs)
    except ArgumentError as error:
        fault: BaseException | None = error
        while fault is not None and not isinstance(fault, MarkedYAMLError):
            fault = fault.__cause__
        if fault is None or fault.problem_mark is None:
            raise
        mark = fault.problem_mark
        raise ArgumentError(
            None, f"{path} is not valid YAML at line {mark.line + 1}, column {mark.column + 1}: {fault.problem}"
        ) from None


class AdvDefCLI(LightningCLI):
    """``advdef fit | validate | test | predict`` with one run folder ``<runs>/<name>``."""

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        words = sys.argv[1:] if args is None else args
        self._asked = words[0] if isinstance(words, list) and words else None
        super().__init__(
            DefenseModule,
            DataModule,
            args=args,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=StartTraining,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": EpochLine()},
            parser_kwargs={
                "prog": "advdef",
                "description": "Train, defend and evaluate image classifiers against adversarial perturbations.",
                "epilog": "Further commands: advdef report FOLDER..., advdef compare FOLDER FOLDER, "
                "advdef calibrate -c CONFIG [-o FILE], advdef distill -c CONFIG -o FILE, "
                "advdef export -c CONFIG -o FILE",
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            **kwargs,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that names the file and the line of a fault in the syntax of a configuration."""
        parser = super().init_parser(**kwargs)
        parser.parse_path = partial(_parse_file, parser.parse_path)
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Options of the command that was asked for; what others take would be half of the time of reading it."""
        if self._asked in self.subcommands() and self._asked != subcommand:
            return self.init_parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

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

    def _parse_ckpt_path(self) -> None:
        """Keeps the configuration: Lightning would replace its model by the one described in the checkpoint."""

    def before_instantiate_classes(self) -> None:
        """Checks the run folder before any data is read.

        Raises:
            ValueError: If ``test`` was given ``--ckpt_path``.
            CheckpointError: If there is nothing to continue.
            ResultFolderError: If the folder holds a training that would be overwritten, or cannot be written to.
        """
        self.save_config_kwargs["folder"] = self.run_folder
        if self.subcommand is None:
            return
        checkpoint = self._get(self.config, "ckpt_path")
        if self.subcommand != "fit" and checkpoint is not None:
            raise ValueError(
                f"{self.subcommand} takes its settings from the configuration and its weights from --model.weights; "
                "--ckpt_path would bring back the settings of training and is for resuming fit"
            )
        self._require_writable()
        if self.subcommand == "fit":
            self._check_fit(checkpoint)

    def _require_writable(self) -> None:
        try:
            self.run_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultFolderError(
                f"cannot make the run folder {self.run_folder} ({error.strerror}): choose another --runs or --name"
            ) from None
        if not os.access(self.run_folder, os.W_OK | os.X_OK):
            raise ResultFolderError(f"{self.run_folder} is not writable: choose another --runs or --name")

    def _check_fit(self, checkpoint: str | None) -> None:
        found = checkpoints(self.run_folder)
        if checkpoint == "last" and not found:
            last = self.run_folder / "checkpoints" / "last.ckpt"
            raise CheckpointError(f"--ckpt_path last: there is no {last} to continue from; leave it out to start anew")
        made = checkpoints_of_job(self.run_folder)
        if made or checkpoint == "last":
            self.config["fit"]["ckpt_path"] = checkpoint = str((made or found)[-1])
        if checkpoint is not None:
            if "optimizer_states" not in read_checkpoint(checkpoint):
                raise CheckpointError(
                    f"{checkpoint} holds weights without the state of training, so there is nothing to continue: "
                    "start from them with --model.weights instead of --ckpt_path"
                )
        elif self._get(self.config, "overwrite"):
            self.save_config_kwargs["replaced"] = self._earlier_training()
        elif found:
            raise ResultFolderError(
                f"{self.run_folder} already holds a training: continue it with --ckpt_path last, start anew with "
                "--overwrite, or choose another --name"
            )

    def _earlier_training(self) -> list[Path]:
        """Files of an earlier training of this name; results of tests are not among them."""
        folder = self.run_folder
        patterns = ("checkpoints/*.ckpt", "hpc_ckpt_*.ckpt", "events.out.tfevents.*", "model.ckpt")
        return [path for pattern in patterns for path in folder.glob(pattern)]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that logs to TensorBoard and keeps its checkpoints in the run folder."""
        settings = self._get(self.config_init, "trainer", default={})
        folder = self.run_folder
        if settings.get("logger") is None:
            kwargs["logger"] = TensorBoardLogger(folder.parent, name=folder.name, version="", default_hp_metric=False)
        if settings.get("default_root_dir") is None:
            kwargs["default_root_dir"] = str(self._place_of_signals())
        if self.subcommand == "test" and self._get(self.config_init, "evaluation").scenarios:
            kwargs.setdefault("enable_progress_bar", False)
        trainer = super().instantiate_trainer(**kwargs)
        self._keep_checkpoints(trainer)
        self._warn_of_emulation(trainer)
        self._warn_of_random_weights()
        return trainer

    def _warn_of_emulation(self, trainer: Trainer) -> None:
        """Says so where bfloat16 was chosen for speed and costs it."""
        instead = []
        if self.subcommand == "fit" and str(trainer.precision).startswith("bf16"):
            instead.append("--trainer.precision 32-true")
        if self._get(self.config_init, "evaluation").settings.search == "bfloat16":
            instead.append("--evaluation.search float32")
        # PyTorch computes in bfloat16 from AVX-512 on, and converts every number before
        if instead and trainer.strategy.root_device.type == "cpu" and get_cpu_capability() == "AVX2":
            rank_zero_warn(
                "this processor has no arithmetic for bfloat16, which is emulated and many times slower than float32: "
                f"{' '.join(instead)}"
            )

    def _warn_of_random_weights(self) -> None:
        """Says so where a network is judged that nobody has trained."""
        judged = self.subcommand in ("validate", "test", "predict") and self.model.weights is None
        if judged and isinstance(self.model.classifier, Classifier) and not self.model.classifier.maybe_trained:
            rank_zero_warn("no --model.weights were given: the network runs as it starts, with random weights")

    def _place_of_signals(self) -> Path:
        """Where Lightning keeps checkpoints made on SLURM's signal, and looks for them unasked.

        A training's is not for a test, which goes on from its shards, as does what is made among them. Nor is that of
        a training about to be replaced: there is none among ``checkpoints``.
        """
        if self.subcommand == "fit":
            return self.run_folder / "checkpoints" if self.save_config_kwargs.get("replaced") else self.run_folder
        shards = self.run_folder / "shards"
        forget_signals(shards)
        return shards

    def _keep_checkpoints(self, trainer: Trainer) -> None:
        """Sends checkpoints without a place of their own to the run folder, and sees that one can be continued."""
        keepers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        for keeper in keepers:
            keeper.dirpath = keeper.dirpath or str(self.run_folder / "checkpoints")
        if keepers and not any(keeper.save_last for keeper in keepers):
            keepers[0].save_last = True

    def after_fit(self) -> None:
        """Stores the weights of the last epoch, without the optimizer, as ``model.ckpt``."""
        path = self.run_folder / "model.ckpt"
        self.trainer.save_checkpoint(path, weights_only=True)
        if self.trainer.is_global_zero:
            forget_signals(self.run_folder)
            print(f"trained weights: {path}")
            for keeper in self.trainer.checkpoint_callbacks:
                if isinstance(keeper, ModelCheckpoint) and keeper.best_model_score is not None:
                    print(f"best weights:    {keeper.best_model_path} ({keeper.monitor} {keeper.best_model_score:.4f})")
            print(f"TensorBoard:     tensorboard --logdir {self.run_folder.parent}")

    def after_test(self) -> None:
        """Says so when nothing was attacked."""
        if not self._get(self.config_init, "evaluation").scenarios and self.trainer.is_global_zero:
            print("no attack was run: the configuration has no scenarios; add -c configs/evaluation/<suite>.yaml")
