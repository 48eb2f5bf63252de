"""RobustnessEvaluation: attacks while a Trainer tests or validates, one row per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_advdef.attacks import MinimalNormAttack
from lightning_advdef.callbacks.judging import Judging
from lightning_advdef.callbacks.pictures import log_pictures
from lightning_advdef.callbacks.writer import AdversarialWriter
from lightning_advdef.data import DataModule
from lightning_advdef.data.claims import Claims
from lightning_advdef.evaluation.cache import AdversarialCache
from lightning_advdef.evaluation.diagnostics.probes import first_look, sample
from lightning_advdef.evaluation.examples import examples_of
from lightning_advdef.evaluation.fingerprint import all_batches, described_loader, fingerprint
from lightning_advdef.evaluation.gallery import Gallery
from lightning_advdef.evaluation.judge import Judge, JudgeSettings, Search
from lightning_advdef.evaluation.result import make_result
from lightning_advdef.evaluation.rows import Rows, read_rows
from lightning_advdef.evaluation.scenario import Scenario, expand, require_unique_names, up_to
from lightning_advdef.evaluation.shares import in_words
from lightning_advdef.evaluation.store import GALLERY_FILE, ResultStore, join_rows
from lightning_advdef.evaluation.summary import validation_metric_names, validation_metrics
from lightning_advdef.evaluation.table import print_results
from lightning_advdef.files import file_hash
from lightning_advdef.requeue import is_started_again, is_tried_again, note_job

PREFIX = "val/robust_accuracy/"


def robust_accuracies(trainer: Trainer) -> dict[str, float]:
    """What the validation that has just ended logged of the current weights, by name of the scenario.

    Empty in an epoch without attacks, where the values of an earlier one are logged again.
    """
    evaluations = [callback for callback in trainer.callbacks if isinstance(callback, RobustnessEvaluation)]  # type: ignore[attr-defined]
    if not all(evaluation.is_due(trainer) for evaluation in evaluations):
        return {}
    logged = trainer.callback_metrics.items()
    return {name.removeprefix(PREFIX): float(value) for name, value in logged if name.startswith(PREFIX)}


def _validation_loop(trainer: Trainer) -> Any:
    """The loop that runs in ``on_validation_batch_end``."""
    return trainer.fit_loop.epoch_loop.val_loop if trainer.state.fn == "fit" else trainer.validate_loop


def _require_one_loader(batches: Sequence[int | float]) -> None:
    """Refuses what would mix up images: each loader numbers them anew.

    Args:
        batches: How many each loader has.
    """
    if len(batches) > 1:
        raise ValueError(
            f"an evaluation takes one data loader, got {len(batches)}: give them to the Trainer one after the other, "
            "each with a result folder of its own"
        )


def _gather(trainer: Trainer, kept: list[Rows]) -> Rows:
    """Rows of all processes, each image once."""
    parts: list[Any] = [kept]
    if trainer.world_size > 1:
        parts = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, kept)
    return join_rows([rows for part in parts for rows in part])


def _weights_file(trainer: Trainer, pl_module: LightningModule) -> dict[str, str | None]:
    """Path and hash of the file that the weights under test were loaded from, None without one."""
    trained = trainer.global_step > 0  # from those weights on
    path = trainer.ckpt_path or (None if trained else getattr(pl_module, "weights", None))
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {"path": None, "sha256": None}
    return {"path": str(path), "sha256": file_hash(path)}


class RobustnessEvaluation(Callback):
    """Attacks the deployed model in every scenario and stores the verdicts.

    Works with any LightningModule whose ``forward`` maps images in [0, 1] to logits, in ``test``, ``validate``
    and, with ``every_n_epochs``, in ``fit``; needs no Trainer flag. Each image index counts once, on any number of
    devices. A test logs ``test/clean_accuracy``, of a random defense the mean over ``draws``, in place of what a module
    of somebody else logs under that name.

    Args:
        scenarios: What to run. A second configuration file appends with ``scenarios+:``.
        batch_size: Largest batch attacked at once, whatever the loader's.
        strict: One padded batch shape and no image leaves early: bit-equal for any order, loader, number of processes.
        draws: Passes on which a stochastic defense is graded.
        seed: Of all attacks and gradings.
        search: ``bfloat16`` lets networks compute in it while attacks search; verdicts stay float32.
        rounded: Also judge the adversarial images after rounding to 8 bits, as a file would hold them.
        write: Name of the scenario whose adversarial images ``predict`` writes to ``<folder>/adversarial_<name>.npz``.
        cache: Folder that keeps adversarial images under a hash of all that made them; None to keep none.
        every_n_epochs: In ``fit``, attack the validation images every so many epochs; 0 for never.
        fit_scenarios: What to run in ``fit``, where ``scenarios`` may cost too much; those if there are none.
        folder: Where results go; the command line sets it to the run's folder. None for the Trainer's log folder.
        overwrite: Replace the result of a different run in that folder.
        progress: Show a progress bar.
        diagnostics: Look at up to 32 images again at the end, for what rows cannot tell of a defense.

    Raises:
        ValueError: If two scenarios share a name or a number is out of range.
    """

    def __init__(
        self,
        scenarios: list[Scenario] = [],  # noqa: B006 - never changed; a None would hide the type from the command line
        batch_size: int = 256,
        strict: bool = False,
        draws: int = 10,
        seed: int = 0,
        search: Search = "float32",
        rounded: bool = False,
        write: str | None = None,
        cache: str | None = None,
        every_n_epochs: int = 0,
        fit_scenarios: list[Scenario] = [],  # noqa: B006
        folder: str | None = None,
        overwrite: bool = False,
        progress: bool = True,
        diagnostics: bool = True,
    ) -> None:
        require_unique_names(scenarios)
        require_unique_names(fit_scenarios)
        if min(batch_size, draws) < 1 or every_n_epochs < 0:
            raise ValueError(
                f"evaluation needs batch_size >= 1, draws >= 1 and every_n_epochs >= 0, got {batch_size}, {draws} and "
                f"{every_n_epochs}"
            )
        self.scenarios = list(scenarios)
        self.fit_scenarios = list(fit_scenarios or scenarios)
        self.settings = JudgeSettings(batch_size, strict, draws, seed, search, rounded)
        self.cache = None if cache is None else AdversarialCache(cache)
        self.every_n_epochs = every_n_epochs
        self.write = write
        self.folder = folder
        self.overwrite = overwrite
        self.progress = progress
        self.diagnostics = diagnostics
        self._judge: Judge | None = None
        self._judging: Judging | None = None
        self._store: ResultStore | None = None
        self._writer: AdversarialWriter | None = None
        self._monitored: dict[str, float] = {}

    @property
    def judges_test_images(self) -> bool:
        """Whether a test gives verdicts on clean images, too, so that the module need not look at them again."""
        return bool(self.scenarios)

    # Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has the images of a test handed out to whichever process is free, unless only some batches are wanted."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, DataModule):
            claimed = stage == "test" and self.judges_test_images and all_batches(trainer.limit_test_batches)
            settings = self.settings
            data.claims = Claims(settings.batch_size, shrink=not settings.strict) if claimed else None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the result folder, or notices that this evaluation is already finished.

        Raises:
            ValueError: If there are several loaders.
        """
        if not self.judges_test_images:
            return
        _require_one_loader(trainer.num_test_batches)
        mean_image = self._mean_image(trainer)
        self._judge = judge = Judge(pl_module, self.scenarios, self.settings, mean_image, self.cache)
        self._store, judged = self._open_store(trainer, pl_module, judge)
        if not self._store.complete:
            loader, diagnostics = trainer.test_dataloaders, self.diagnostics
            # of a part of the data set, only the images that are wanted are looked at
            whole = all_batches(trainer.limit_test_batches)
            look = first_look(loader, trainer.strategy.batch_to_device) if whole else None
            if look is not None:
                judge.look_for_randomness(look)
            self._judging = Judging(judge, trainer, loader, self._store, judged, self.progress, diagnostics)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gets ready, unless this is the sanity check or an epoch without attacks.

        Raises:
            ValueError: If there are several loaders.
        """
        scenarios = self.fit_scenarios if trainer.state.fn == "fit" else self.scenarios
        if scenarios and self.is_due(trainer):
            _require_one_loader(trainer.num_val_batches)
            judge = Judge(pl_module, scenarios, self.settings)
            self._judging = Judging(judge, trainer, trainer.val_dataloaders, progress=self.progress)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the current validation is attacked; in ``fit`` it may be an epoch without, or the sanity check."""
        if trainer.state.fn != "fit":
            return True
        every = self.every_n_epochs
        return every > 0 and (trainer.current_epoch + 1) % every == 0 and not trainer.sanity_checking

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Judges full batches."""
        self._take(batch)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Judges full batches, and the rest behind the last one.

        What averages weights puts them back at the end of the epoch, perhaps before this callback's turn.
        """
        self._take(batch)
        if self._judging is not None and _validation_loop(trainer).batch_progress.is_last_batch:
            self._judging.flush()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the rest; rank 0 gathers all shards, writes the result and prints the table."""
        store, judging = self._store, self._judging
        if store is None:
            return
        if judging is not None:
            judging.flush()
            store.mark_done(trainer.global_rank, judging.share())
            if trainer.is_global_zero:
                self._finish(trainer, pl_module, judging.judge, store)
            else:
                store.wait_until_complete()
        elif trainer.is_global_zero:
            print(f"already evaluated: {store.json_path}")
            self._diagnose_again(trainer, pl_module, store)
        pl_module.log("test/clean_accuracy", store.result()["clean_accuracy"]["value"], sync_dist=True)
        if trainer.is_global_zero:
            print_results([store.folder])
        self._end()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs robust accuracy of the validation images."""
        if self._judging is not None:
            rows = _gather(trainer, self._judging.kept)
            self._monitored = validation_metrics(rows, self._judging.judge.scenarios)
            self._end()
            pl_module.log_dict(self._monitored, sync_dist=True)
        elif trainer.state.fn == "fit" and self.every_n_epochs and not trainer.sanity_checking:
            # a checkpoint that monitors a value fails in an epoch that does not have it, so the last one stands
            names = validation_metric_names(expand(self.fit_scenarios, pl_module))
            pl_module.log_dict(self._monitored or dict.fromkeys(names, math.nan), sync_dist=True)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gets ready to write the adversarial images of one scenario.

        Raises:
            ValueError: If there is no such scenario, there are several loaders, or several processes would write one
                file.
            ResultFolderError: If the file holds the images of a different run.
        """
        if self.write is None:
            return
        _require_one_loader(trainer.num_predict_batches)
        wanted = up_to(self.write, expand(self.scenarios, pl_module))
        if not wanted or trainer.world_size > 1:
            names = ", ".join(scenario.name for scenario in expand(self.scenarios, pl_module)) or "none"
            raise ValueError(
                f"evaluation.write takes the name of a scenario ({names}) and one process, got {self.write!r} and "
                f"{trainer.world_size}"
            )
        name = self.write.replace("/", "_")
        judge = Judge(pl_module, wanted, self.settings, cache=self.cache)
        read = described_loader(trainer, trainer.predict_dataloaders, trainer.limit_predict_batches)
        path = self._folder(trainer) / f"adversarial_{name}.npz"
        self._writer = AdversarialWriter(self.write, path, fingerprint(read, pl_module, judge), self.overwrite)
        self._judging = Judging(judge, trainer, trainer.predict_dataloaders, progress=self.progress)
        judge.watch = self._writer

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Attacks full batches."""
        self._take(batch)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attacks the rest and writes the file."""
        if self._writer is not None and self._judging is not None:
            self._judging.flush()
            path = self._writer.save(self._judging.kept)
            self._end()
            print(f"adversarial images: {path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the terminal in order; shards stay and the next run goes on from them."""
        store, judging = self._store, self._judging
        if store is not None:
            store.mark_failed(trainer.global_rank)
        self._end()
        stopped = isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero
        if stopped and store and judging and not store.complete:
            total = "" if judging.total is None else f" of {judging.total}"
            print(f"interrupted: {len(store.judged())}{total} images are judged, the same command goes on")

    def _take(self, batch: Any) -> None:
        if self._judging is not None:
            self._judging.take(batch)

    def _end(self) -> None:
        if self._judging is not None:
            self._judging.close()
        self._judge = self._judging = self._store = self._writer = None

    # the result folder

    def _open_store(self, trainer: Trainer, pl_module: LightningModule, judge: Judge) -> tuple[ResultStore, set[int]]:
        """The store, and which images it holds before any process adds to them."""
        folder = self._folder(trainer)
        read = described_loader(trainer, trainer.test_dataloaders, trainer.limit_test_batches)
        identity = fingerprint(read, pl_module, judge)
        if trainer.is_global_zero:
            shards = folder / "shards"
            again = is_started_again(shards) or is_tried_again(shards)  # what is there is then of this evaluation
            opened = ResultStore(folder, identity, self.overwrite and not again)
            opened.open()
            if not opened.complete:
                note_job(shards)
        trainer.strategy.barrier()
        store = ResultStore(folder, identity)
        judged = store.judged()
        trainer.strategy.barrier()
        return store, judged

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder or trainer.log_dir or trainer.default_root_dir)

    def _mean_image(self, trainer: Trainer) -> Tensor | None:
        if not any(isinstance(scenario.attack, MinimalNormAttack) for scenario in self.scenarios):
            return None
        find = getattr(getattr(trainer, "datamodule", None), "mean_image", None)
        mean: Tensor | None = find() if find else None
        return mean

    def _diagnose_again(self, trainer: Trainer, pl_module: LightningModule, store: ResultStore) -> None:
        """Adds what a finished evaluation was spared, if it is wanted now; its numbers stay."""
        told = store.result()
        # the others would wait in a collective, which times out
        if told["probed"] or not self.diagnostics or self._judge is None or trainer.world_size > 1:
            return
        rows = read_rows(store.npz_path)
        probed = sample(trainer.test_dataloaders, rows, trainer.strategy.batch_to_device)
        if probed is None:
            return
        found = make_result(rows, self._judge, str(pl_module.device), trainer.world_size, probed)
        store.finish(rows, told | {name: found[name] for name in ("probed", "diagnostics")})
        print(f"diagnostics added: {store.json_path}")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, judge: Judge, store: ResultStore) -> None:
        shares = store.wait_for(range(trainer.world_size))
        rows = store.gather()
        probed = sample(trainer.test_dataloaders, rows, trainer.strategy.batch_to_device) if self.diagnostics else None
        result = make_result(rows, judge, str(pl_module.device), trainer.world_size, probed)
        gallery = Gallery(judge.scenarios, store.folder / GALLERY_FILE)
        gallery.kept = gallery.holding(rows)
        for path in store.galleries():
            gallery.join(path)
        gallery.save()
        store.finish(rows, result | {"weights_file": _weights_file(trainer, pl_module), "processes": shares})
        if len(shares) > 1:
            print(in_words(shares))
        log_pictures(trainer, rows, result, judge.scenarios, examples_of(gallery.kept, rows))
