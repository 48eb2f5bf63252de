"""Adversarial training images that are made once, from weights that stay as they are, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_advdef.attacks import Attack, Surrogate
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.checkpoints import plain, tensor_bytes, weights_hash
from lightning_advdef.data.sources import ImageDataset, MemoryImages
from lightning_advdef.files import whole_file
from lightning_advdef.hashing import code_hash
from lightning_advdef.messages import with_bar
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from lightning_advdef.waiting import wait_until

Leaves = Literal["label", "prediction"]

_ATTACKED_AT_ONCE = 256


class FixedExamples:
    """The adversarial image of each training image.

    Args:
        indices: Positions of the images in the training set, int64, ascending, shape ``(N,)``.
        images: Adversarial images in the same order, float32 (8 bits would round DeepFool's away), ``(N, C, H, W)``.
    """

    def __init__(self, indices: Tensor, images: Tensor) -> None:
        self.indices = indices
        self.images = images

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Adversarial images of the images at ``indices``, on their device."""
        rows = torch.searchsorted(self.indices, indices.cpu())
        return self.images[rows].to(indices.device)


def attacked(surrogate: Surrogate, attack: Attack, batch: Batch, rng: SampleRNG, leaves: Leaves = "label") -> Tensor:
    """Adversarial images for training: of each image the strongest iterate, also where an earlier one fooled already.

    Args:
        surrogate: What is attacked, in eval mode.
        attack: What makes the images.
        batch: Clean images in [0, 1], shape ``(N, C, H, W)``, and their labels.
        rng: Of the images.
        leaves: Which class the images are driven away from; the ``prediction`` keeps an attack from telling the label.
    """
    surrogate.strongest = True
    labels = batch.labels
    if leaves == "prediction":
        with attack_mode(*surrogate.modules), torch.no_grad():
            labels = surrogate(batch.images, rng.stream("prediction")).mean(dim=0).argmax(dim=1)
    return attack(surrogate, batch.images, labels, rng)


def load_or_make(
    trainer: Trainer,
    surrogate: Surrogate,
    attack: Attack,
    seed: int,
    leaves: Leaves = "label",
    folder: str | None = None,
) -> FixedExamples:
    """Reads the set, or makes it first and goes on where that was interrupted; the first process works, others wait.

    They wait by files, as the making may take longer than any collective: on several machines ``folder`` must be on a
    shared file system.

    Args:
        trainer: Its data module has the images.
        surrogate: What is attacked, on the device of the training.
        attack: What makes the images.
        seed: Of a random attack.
        leaves: See :func:`attacked`.
        folder: Where the file lies, whose name is a hash of surrogate, weights, attack, images, seed and the source of
            all that; None for the Trainer's ``default_root_dir``.

    Raises:
        ValueError: If training images are not the same in every epoch.
        RuntimeError: If the first process failed.
    """
    dataset = training_images(trainer)
    _require_fixed(trainer, dataset)
    key = _key(surrogate, attack, dataset, seed, leaves)
    path = Path(folder or trainer.default_root_dir) / f"fixed_examples_{key}.safetensors"
    if trainer.is_global_zero:
        path.with_suffix(".failed").unlink(missing_ok=True)
    # before the weights are the same everywhere, others would wait for a file of another name
    path = trainer.strategy.broadcast(path)
    failed = path.with_suffix(".failed")
    if not trainer.is_global_zero:
        wait_until(path.is_file, failed.is_file)
    elif not path.is_file():
        print(f"making {len(dataset)} adversarial training images: {path}")
        with _telling(failed):
            _make(surrogate, attack, dataset, trainer, seed, leaves, path)
    return FixedExamples(dataset.indices, load_file(path)["images"])


@contextmanager
def _telling(failed: Path) -> Iterator[None]:
    """Leaves a file for those who wait, should they wait in vain."""
    try:
        yield
    except BaseException:
        failed.parent.mkdir(parents=True, exist_ok=True)
        failed.touch()
        raise


def training_images(trainer: Trainer) -> ImageDataset:
    """The training images in ascending order, without augmentation.

    Raises:
        ValueError: If they are not of a data module of this package.
    """
    data: Any = getattr(trainer, "datamodule", None)
    dataset = None if data is None else data.train_dataloader().dataset
    if not isinstance(dataset, ImageDataset):
        raise ValueError("training looks at all training images before it starts: use a data module of this package")
    return _in_order(dataset)


def validation_images(trainer: Trainer) -> ImageDataset | None:
    """The same for the images of the validation; None if there is none."""
    data: Any = getattr(trainer, "datamodule", None)
    loader: Any = data.val_dataloader() if trainer.limit_val_batches else []
    return _in_order(loader.dataset) if len(loader) else None


def progress_shown(trainer: Trainer) -> bool:
    """Whether this process draws bars."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def _in_order(dataset: ImageDataset) -> ImageDataset:
    return ImageDataset(dataset.source, dataset.indices.sort().values)


def _require_fixed(trainer: Trainer, dataset: ImageDataset) -> None:
    augment = getattr(getattr(trainer, "datamodule", None), "augment", "none")
    if not isinstance(dataset.source, MemoryImages) or augment != "none":
        raise ValueError(
            "fixed adversarial images need training images that are the same in every epoch: use a data module of "
            "this package that holds its images in memory, with --data.augment none"
        )


def _key(surrogate: Surrogate, attack: Attack, dataset: ImageDataset, seed: int, leaves: Leaves) -> str:
    source = dataset.source
    assert isinstance(source, MemoryImages)
    weights = [weights_hash(module) for module in surrogate.modules]
    code = code_hash(surrogate, attack, *surrogate.modules)
    recipe = [surrogate.describe(), weights, code, plain(attack), leaves, seed]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for tensor in (dataset.indices, source.pixels, source.labels):
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:16]


def _make(
    surrogate: Surrogate,
    attack: Attack,
    dataset: ImageDataset,
    trainer: Trainer,
    seed: int,
    leaves: Leaves,
    path: Path,
) -> None:
    """Some images at a time, each lot in a file of its own until all are there."""
    folder, images = path.with_suffix(".lots"), []
    lots = torch.split(torch.arange(len(dataset)), _ATTACKED_AT_ONCE)
    for number, positions in enumerate(with_bar(lots, "attacking training images", progress_shown(trainer))):
        lot = folder / f"{number}.safetensors"
        if not lot.is_file():
            batch = Batch(
                *(tensor.to(trainer.strategy.root_device) for tensor in dataset.__getitems__(positions.tolist()))
            )
            rng = SampleRNG.for_images(batch.indices, seed, "train")
            _save(attacked(surrogate, attack, batch, rng, leaves).cpu(), lot)
        images.append(load_file(lot)["images"])
    _save(torch.cat(images), path)
    shutil.rmtree(folder, ignore_errors=True)


def _save(images: Tensor, path: Path) -> None:
    with whole_file(path) as unfinished:
        save_file({"images": images.contiguous()}, unfinished)
