"""One scenario on one batch: what fits in memory, what is cached, what was spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_advdef.attacks import Surrogate
from lightning_advdef.attacks.verdict import exact_arithmetic
from lightning_advdef.evaluation.cache import AdversarialCache
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

Columns = dict[str, Tensor]
T = TypeVar("T")

# torch's CPU allocator on Linux and on Windows, and the libraries of CUDA
_NO_MEMORY = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")


class Attacked(NamedTuple):
    """Adversarial images ``(N, C, H, W)``, and columns ``(N,)``: passes and what the attack's ledger holds."""

    images: Tensor
    columns: Columns


class ScenarioRunner:
    """Attacks batches in one scenario.

    On a device that runs out of memory the images are attacked in smaller groups from then on, except in strict mode,
    whose one batch shape must hold.

    Args:
        scenario: What to run.
        surrogate: The scenario's surrogate, bound to the defense.
        cache: Where adversarial images are kept between runs; None to keep none.
    """

    def __init__(self, scenario: Scenario, surrogate: Surrogate, cache: AdversarialCache | None = None) -> None:
        self.scenario = scenario
        self.surrogate = surrogate
        self.cache = cache
        self.size: int | None = None

    def __call__(self, batch: Batch, rng: SampleRNG, rows: Tensor, ledger: Columns) -> Attacked:
        """Attacks the images at ``rows``.

        Args:
            batch: The whole batch.
            rng: Its random numbers.
            rows: Which images to attack, bool, shape ``(N,)``.
            ledger: Columns of the whole batch that are known already, which spares a cascade its finished parts.

        Returns:
            Images and columns of the whole batch; clean images and no meaning in the columns where not attacked.
        """
        if self.surrogate.fixed_shape:
            with self.surrogate.enlisting(rows):
                return self._cached(batch, rng, ledger)
        # networks may not take a batch of no images; the result of the one that is not wanted is left out
        where = rows.nonzero().squeeze(1) if rows.any() else torch.zeros(1, dtype=torch.int64, device=rows.device)
        parts = Batch(*(tensor[where] for tensor in batch))
        found = self._in_groups(parts, rng[where], {name: column[where] for name, column in ledger.items()})
        wanted = rows[where]
        images = batch.images.clone()
        images[where[wanted]] = found.images[wanted]
        columns = {name: _spread(column[wanted], where[wanted], len(rows)) for name, column in found.columns.items()}
        return Attacked(images, columns)

    def _in_groups(self, batch: Batch, rng: SampleRNG, ledger: Columns) -> Attacked:
        def attacked(group: slice) -> Attacked:
            known = {name: column[group] for name, column in ledger.items()}
            return self._cached(Batch(*(tensor[group] for tensor in batch)), rng[group], known)

        found, self.size = in_groups(attacked, len(batch.images), self.size)
        columns = {name: torch.cat([part.columns[name] for part in found]) for name in found[0].columns}
        return Attacked(torch.cat([part.images for part in found]), columns)

    def _cached(self, batch: Batch, rng: SampleRNG, ledger: Columns) -> Attacked:
        if self.cache is None:
            return self._attack(batch, rng, ledger)
        key = self.cache.key(self.scenario, self.surrogate, batch, rng, ledger)
        found = self.cache.load_adversarial(key, self.scenario.attack, batch.images)
        if found is None:
            attacked = self._attack(batch, rng, ledger)
            self.cache.save(key, attacked.images, attacked.columns)
            return attacked
        return Attacked(*found)

    def _attack(self, batch: Batch, rng: SampleRNG, ledger: Columns) -> Attacked:
        surrogate = self.surrogate
        numbered = rng.numbered()
        passes = surrogate.start_counting(len(batch.images), batch.images.device)
        surrogate.known = ledger
        with exact_arithmetic():
            images = self.scenario.attack(surrogate, batch.images, batch.labels, numbered)
        surrogate.passes, surrogate.known = None, {}
        return Attacked(images, vars(passes) | surrogate.ledger)


def in_groups(work: Callable[[slice], T], count: int, size: int | None) -> tuple[list[T], int | None]:
    """What ``work`` gives of groups of rows, and their size (None for all), halved from where memory runs out on."""
    found: list[T] = []
    first = 0
    while first < count:
        now = min(size or count, count - first)
        try:
            found.append(work(slice(first, first + now)))
        except RuntimeError as error:
            if not is_out_of_memory(error) or now == 1:
                raise
            size = (now + 1) // 2
            torch.cuda.empty_cache()
        else:
            first += now
    return found, size


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _spread(column: Tensor, rows: Tensor, count: int) -> Tensor:
    """The column of the whole batch, with 0, or NaN where numbers may be NaN, for the other images."""
    spread = column.new_full((count,), torch.nan if column.is_floating_point() else 0)
    spread[rows] = column
    return spread
