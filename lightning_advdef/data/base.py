"""The contract of a data set: splits that never mix, and batches of pixels in [0, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal
from uuid import uuid4

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_advdef.data.augment import Augment, augment
from lightning_advdef.data.claims import ClaimedBatches, Claims
from lightning_advdef.data.partition import carve_validation, choose
from lightning_advdef.data.sources import EpochSampler, ImageDataset, ImageSource, MemoryImages, as_is
from lightning_advdef.errors import DatasetNotFoundError, require_choice
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

Split = Literal["train", "test"]

# the sampler shuffles by seed + epoch; a wide step keeps the orders of two seeds apart
_SEED_STEP = 1_000_003


class DataModule(LightningDataModule, ABC):
    """Base of all data sets; a subclass names its ``spec`` and loads a split.

    Validation images are carved out of the training set, the same ones for everyone. Random choices depend on the
    image, the seed and the epoch only. Crop and flip run per batch on the device, while a Trainer trains.

    Args:
        root: Where the data lies.
        batch_size: Images per step over all devices together.
        val_fraction: Share of the training set kept for validation, in [0, 1).
        limit: Use at most so many test images: a random choice that is always the same.
        limit_train: The same for training images.
        limit_val: The same for validation images.
        augment: Change training images: mirror half of them, crop them at random within 4 pixels of zeros, or both.
        download: Fetch the data if it is not at ``root``.
        num_workers: Processes that read ahead; data in memory needs none.
        seed: Of the order of training images and of augmentation.

    Raises:
        ValueError: If an argument is out of its range.
    """

    downloadable = True

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_fraction: float = 0.1,
        limit: int | None = None,
        limit_train: int | None = None,
        limit_val: int | None = None,
        augment: Augment = "none",
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = root
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.limit = limit
        self.limit_train = limit_train
        self.limit_val = limit_val
        self.augment = augment
        self.download = download
        self.num_workers = num_workers
        self.seed = seed
        self.claims: Claims | None = None
        self._check_arguments()
        self._sources: dict[Split, ImageSource] = {}
        self._datasets: dict[str, ImageDataset] = {}
        self._mean: Tensor | None = None

    @property
    @abstractmethod
    def spec(self) -> str:
        """Name or ``CxHxWxK`` for ``get_spec``; known before ``setup``, so the CLI can hand it to the model."""

    @abstractmethod
    def load(self, split: Split) -> ImageSource:
        """Reads a full split.

        Raises:
            DatasetNotFoundError: If it is not there.
        """

    def setup(self, stage: str) -> None:
        """Loads what the stage may see; ``fit`` drops the test set even if it was there before.

        Raises:
            DatasetNotFoundError: If the data is not there.
            ValueError: If the batch size does not divide among the devices.
        """
        self._device_batch_size()
        if stage in ("fit", "validate"):
            self._sources.pop("test", None)
            self._datasets.pop("test", None)
            source = self._source("train")
            train, val = carve_validation(len(source.labels), self.val_fraction)
            self._datasets["train"] = ImageDataset(source, choose(train, self.limit_train), training=True)
            self._datasets["val"] = ImageDataset(source, choose(val, self.limit_val))
        else:
            source = self._source("test")
            self._datasets["test"] = ImageDataset(source, choose(torch.arange(len(source.labels)), self.limit))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled training batches; each process of a distributed run gets its own share.

        A last batch of one image per process is left out.
        """
        dataset = self._dataset("train")
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = EpochSampler(dataset, world_size, rank, shuffle=True, seed=self.seed * _SEED_STEP)
        sampler.batch_size = self._device_batch_size()
        sampler.skip = self._batches_done() * sampler.batch_size
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Validation batches in order; an empty list if ``val_fraction`` is 0."""
        dataset = self._dataset("val")
        return self._loader(dataset) if len(dataset) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test batches in order; with ``claims``, several processes take theirs from a common counter."""
        if self.claims is None or self.trainer is None or self.trainer.world_size == 1:
            return self._loader(self._dataset("test"))
        return self._claimed_loader(self._dataset("test"), self.trainer, self.claims)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test batches."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augments a training batch on its device; all others pass unchanged."""
        if self.trainer is None or not self.trainer.training or self.augment == "none":
            return batch
        rng = SampleRNG.for_images(batch.indices, self.seed, "train", self.trainer.current_epoch).stream("augment")
        return batch._replace(images=self.augment_images(batch.images, rng))

    def augment_images(self, images: Tensor, rng: SampleRNG) -> Tensor:
        """Augmented copies of images ``(N, C, H, W)``, by one key per image."""
        return augment(images, rng, self.augment)

    def mean_image(self) -> Tensor | None:
        """Mean of the training images, float32 in [0, 1], shape ``(C, H, W)``; ``None`` if not in memory.

        Validation images are left out and ``limit_train`` is ignored. Loads the training set if need be.
        """
        try:
            source = self._source("train")
        except DatasetNotFoundError:
            return None
        if self._mean is None and isinstance(source, MemoryImages):
            self._mean = source.mean(carve_validation(len(source.labels), self.val_fraction)[0])
        return self._mean

    def not_found(self, where: object) -> DatasetNotFoundError:
        """The error for data that is not at ``where``, with the remedy."""
        fetch = "add --data.download true to fetch it, or " if self.downloadable else ""
        return DatasetNotFoundError(
            f"{type(self).__name__} was not found at {where}: {fetch}point --data.root to where it lies"
        )

    def _source(self, split: Split) -> ImageSource:
        if split not in self._sources:
            self._sources[split] = self.load(split)
        return self._sources[split]

    def _dataset(self, name: str) -> ImageDataset:
        if name not in self._datasets:
            stage = "test" if name == "test" else "fit"
            raise RuntimeError(
                f"the {name} images are not loaded: call setup({stage!r}) first, as trainer.{stage} does "
                "(fit never loads the test images)"
            )
        return self._datasets[name]

    def _loader(self, dataset: ImageDataset, sampler: EpochSampler | None = None) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_size=self._device_batch_size(),
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=as_is,
            pin_memory=torch.cuda.is_available(),
        )

    def _claimed_loader(self, dataset: ImageDataset, trainer: Trainer, claims: Claims) -> DataLoader[Batch]:
        name = trainer.strategy.broadcast(uuid4().hex)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=ClaimedBatches(dataset, trainer.world_size, trainer.global_rank, claims, name),
            # what is read ahead is claimed ahead, so one batch it is
            num_workers=min(1, self.num_workers),
            prefetch_factor=1 if self.num_workers else None,
            collate_fn=as_is,
            pin_memory=torch.cuda.is_available(),
        )

    def _batches_done(self) -> int:
        """Training batches of the current epoch before the checkpoint; Lightning would serve them a second time."""
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        # Lightning annotates a base class that lacks the attribute
        return 0 if progress.is_last_batch else progress.current.processed  # type: ignore[attr-defined]

    def _device_batch_size(self) -> int:
        devices = self.trainer.world_size if self.trainer else 1
        if self.batch_size % devices:
            raise ValueError(
                f"batch_size counts the images on all devices together and must be a multiple of their number "
                f"{devices}, got {self.batch_size}: change --data.batch_size or --trainer.devices"
            )
        return self.batch_size // devices

    def _check_arguments(self) -> None:
        for name, least in (("batch_size", 1), ("limit", 1), ("limit_train", 1), ("limit_val", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}: change --data.{name}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {self.val_fraction}: change --data.val_fraction")
        require_choice("augment", self.augment, Augment)
