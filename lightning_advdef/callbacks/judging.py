"""Judging: the images of one pass over the data, on their way from the loader to the verdicts."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sized
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch.utils.data import RandomSampler

from lightning_advdef.attacks import MinimalNormAttack
from lightning_advdef.callbacks.pictures import tensorboard
from lightning_advdef.callbacks.progress import AttackProgress
from lightning_advdef.callbacks.running import RunningView
from lightning_advdef.data.claims import ClaimedBatches
from lightning_advdef.evaluation.estimate import estimate
from lightning_advdef.evaluation.gallery import Gallery
from lightning_advdef.evaluation.judge import Judge
from lightning_advdef.evaluation.rows import Rows
from lightning_advdef.evaluation.shares import share_of
from lightning_advdef.evaluation.store import ResultStore
from lightning_advdef.types import Batch


class Judging:
    """Collects images to full batches, judges them, stores and shows what was found.

    Args:
        judge: What judges them.
        trainer: Whose process this is.
        loader: What they come from.
        store: Where rows go as they are found, and pictures with them; None to keep the rows alone.
        judged: Indices that need not be judged again.
        progress: Show a progress bar, on the first process of a terminal.
        diagnostics: Whether diagnostics follow, for the sentence about the cost.

    Attributes:
        judge: As given.
        kept: Rows of this pass, a table for each batch.
        total: Images that there are to judge; None if unknown.
    """

    def __init__(
        self,
        judge: Judge,
        trainer: Trainer,
        loader: Any,
        store: ResultStore | None = None,
        judged: Collection[int] = frozenset(),
        progress: bool = True,
        diagnostics: bool = True,
    ) -> None:
        self.judge, self._store, self._diagnostics = judge, store, diagnostics
        self.kept: list[Rows] = []
        self._several = trainer.world_size > 1
        self._sampler = getattr(loader, "sampler", None)
        # what is known of images in validation is their number
        self._numbered = trainer.state.fn in ("test", "predict")
        self._judged = judged
        self._pending: list[Batch] = []
        self._seen = 0
        self._gallery: Gallery | None = None
        if store is not None:
            judge.watch = self._gallery = Gallery(judge.scenarios, store.gallery_of(trainer.global_rank))
        dataset = getattr(loader, "dataset", None)
        self.total = len(dataset) if isinstance(dataset, Sized) else None
        left = None if self.total is None else -(-max(0, self.total - len(judged)) // trainer.world_size)
        self._left = left if trainer.is_global_zero and store is not None else None
        self._bar: AttackProgress | None = None
        if progress and trainer.is_global_zero and sys.stderr.isatty():
            bounded = [s.name for s in judge.scenarios if not isinstance(s.attack, MinimalNormAttack)]
            self._bar = AttackProgress(left, bounded)
        self._view = self._open_view(trainer)
        self._began = self._ready = time.perf_counter()

    def take(self, batch: Any) -> None:
        """Judges as many full batches as there are with these images; batches that were claimed at once.

        Args:
            batch: ``(images, labels, indices)``, or ``(images, labels)`` of a foreign loader, which are numbered in its
                order.

        Raises:
            ValueError: If images cannot be told apart.
        """
        batch = self._as_batch(batch)
        if self._judged:
            fresh = torch.tensor([index not in self._judged for index in batch.indices.tolist()])
            batch = Batch(*(tensor[fresh.to(tensor.device)] for tensor in batch))
        self._pending.append(batch)
        while sum(len(part.images) for part in self._pending) >= self.judge.settings.batch_size:
            self._judge_next()
        if isinstance(self._sampler, ClaimedBatches):
            self.flush()

    def flush(self) -> None:
        """Judges what is left."""
        while sum(len(part.images) for part in self._pending):
            self._judge_next()

    def close(self) -> None:
        """Leaves the terminal in order."""
        if self._bar is not None:
            self._bar.close()

    def share(self) -> dict[str, float]:
        """What this process did."""
        names = [scenario.name for scenario in self.judge.scenarios]
        return share_of(self.kept, names, self._ready - self._began)

    def _judge_next(self) -> None:
        """Judges the next ``batch_size`` pending images, or what is left of them."""
        joined = Batch(*(torch.cat(tensors) for tensors in zip(*self._pending, strict=True)))
        size = self.judge.settings.batch_size
        self._pending = [Batch(*(tensor[size:] for tensor in joined))]
        batch = Batch(*(tensor[:size] for tensor in joined))
        self._announce(batch)
        rows = self.judge(batch, None if self._store is None else self._store.known(batch.indices))
        self.kept.append(rows)
        self._ready = time.perf_counter()
        if self._store is not None and self._gallery is not None:
            self._gallery.save()  # first, so that a batch whose rows are there is never without its images
            self._store.add(rows)
        if self._bar is not None:
            self._bar.judged(rows)
        if self._view is not None:
            self._view.judged(rows)

    def _open_view(self, trainer: Trainer) -> RunningView | None:
        """What TensorBoard shows of a test while it runs, of the first process; it goes on from rows that are there."""
        if self._store is None or self._gallery is None or not trainer.is_global_zero:
            return None
        logger = tensorboard(trainer)
        if logger is None:
            return None
        view = RunningView(logger.experiment, self.judge, self._gallery)
        if self._judged:
            rows = self._store.gather()  # with what other processes have added since they began
            before = torch.isin(rows["index"], torch.tensor(sorted(self._judged)))
            view.judged({name: column[before] for name, column in rows.items()})
        return view

    def _announce(self, batch: Batch) -> None:
        """Says once, before the first batch, what the evaluation costs at most."""
        if self._left:
            judge, total = self.judge, self.total or 0
            runners, draws = list(judge.runners.values()), judge.settings.draws
            sentence = estimate(judge.defense, runners, batch, self._left, draws, total if self._diagnostics else 0)
            if sentence:
                print(sentence)
        self._left = None

    def _as_batch(self, batch: Any) -> Batch:
        if isinstance(batch, Batch) or len(batch) == 3:
            return Batch(*batch)
        if self._several:
            raise ValueError(
                "on several devices every batch must be (images, labels, indices), so each image counts once"
            )
        if self._numbered and isinstance(self._sampler, RandomSampler):
            raise ValueError("the loader shuffles, so images have no index: use shuffle=False, or yield indices")
        images, labels = batch
        indices = torch.arange(self._seen, self._seen + len(images), device=images.device)
        self._seen += len(images)
        return Batch(images, labels, indices)
