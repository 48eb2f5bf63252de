"""A training step of IDFR's denoiser against the passes that it needs, and seconds of an epoch of its restorer.

A step needs a gradient of the target by the images for FGSM, and a pass of adversarial and noisy copies through
denoiser and target with its gradient by the denoiser's weights; both are timed bare, in turn with the step, and the
median of the ratios is printed. The epoch is one of a Trainer, on 50,000 embeddings of width 512.

Usage: ``python -m benchmarks.bench_idfr [--batch 32] [--width 32] [--rounds 5] [--threads 1] [--pairs 512]``
"""

from __future__ import annotations

import argparse
import functools
import logging
import tempfile
import time
import warnings
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from benchmarks.timing import Spent, print_ratio, timed
from lightning_advdef.attacks import FullGradient
from lightning_advdef.data import DataModule, get_spec
from lightning_advdef.data.sources import MemoryImages
from lightning_advdef.defenses import IDFRModule
from lightning_advdef.defenses.idfr.adversaries import Adversaries
from lightning_advdef.defenses.idfr.embeddings import EmbeddingPools
from lightning_advdef.defenses.idfr.restoring import RestorerTraining
from lightning_advdef.models import ResNet
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

SPEC = get_spec("cifar10")
EMBEDDINGS, FEATURES, EPOCHS = 50_000, 512, 3
NOISE_ROUNDS = 2


def bare_passes(module: IDFRModule, batch: Batch, copies: int) -> Tensor:
    """What a step cannot do without, on images of the same shape."""
    images = batch.images.clone().requires_grad_()
    loss = F.cross_entropy(module.classifier(images), batch.labels, reduction="sum")
    torch.autograd.grad(loss, images)
    stacked = batch.images.repeat(copies, 1, 1, 1)
    return F.cross_entropy(module.classifier(module.denoiser(stacked)), batch.labels.repeat(copies))


def denoiser_step(arguments: argparse.Namespace) -> None:
    network = functools.partial(ResNet, width=arguments.width)
    module = (
        IDFRModule(network, spec=SPEC.name, noise_rounds=NOISE_ROUNDS, leaves=arguments.leaves)
        .to(arguments.device)
        .train()
    )
    module.part_training.adversaries = Adversaries(module.part_training.recipe, FullGradient(module.classifier))
    indices = torch.arange(arguments.batch, device=arguments.device)
    batch = Batch(torch.rand(arguments.batch, *SPEC.shape, device=arguments.device), indices % 10, indices)
    optimizer = torch.optim.Adam((each for each in module.parameters() if each.requires_grad), lr=1e-3, fused=True)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    times: dict[str, list[Spent]] = {"step": [], "passes": []}
    for round_ in range(arguments.rounds + 1):
        step, _ = timed(lambda: update(module.loss(batch, SampleRNG.for_images(indices))["loss"]), arguments.device)
        bare, _ = timed(lambda: update(bare_passes(module, batch, 1 + NOISE_ROUNDS)), arguments.device)
        if round_:  # the first warms up
            times["step"].append(step)
            times["passes"].append(bare)
    print(f"denoiser, ResNet-18 of width {arguments.width}, {arguments.batch} images, leaves: {arguments.leaves}")
    print_ratio(times, "step", "passes")


class Images(DataModule):
    """As many small images as there are embeddings."""

    spec = SPEC.name

    def load(self, split: str) -> MemoryImages:
        """Black images."""
        pixels = torch.zeros(EMBEDDINGS, *SPEC.shape, dtype=torch.uint8)
        return MemoryImages(pixels, torch.arange(EMBEDDINGS) % SPEC.classes)


class Epochs(Callback):
    """Wall and CPU seconds of each epoch."""

    def __init__(self) -> None:
        self.spent: list[Spent] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Starts both clocks."""
        self.started = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Reads both clocks."""
        self.spent.append(Spent(time.perf_counter() - self.started[0], time.process_time() - self.started[1]))


class Embedded(IDFRModule):
    """A restorer's training whose embeddings are there."""

    def on_fit_start(self) -> None:
        """Random embeddings."""
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.rand(EMBEDDINGS, FEATURES, generator=generator).to(self.device)
        labels = torch.arange(EMBEDDINGS, device=self.device) % SPEC.classes
        assert isinstance(self.part_training, RestorerTraining)
        self.part_training.pools = EmbeddingPools(embeddings, labels, labels % 7 > 0, SPEC.classes)


def restorer_epoch(arguments: argparse.Namespace) -> None:
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)
    module = Embedded(ResNet, stage="restore", spec=SPEC.name, weights="none", optimizer=optimizer)
    module._weights_loaded = True
    epochs = Epochs()
    trainer = Trainer(
        accelerator="gpu" if arguments.device == "cuda" else "cpu",
        devices=1,
        max_epochs=EPOCHS,
        callbacks=[epochs],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
    )
    trainer.fit(module, Images(batch_size=arguments.pairs, val_fraction=0.0))
    wall, cpu = (median(column) for column in zip(*epochs.spent, strict=True))
    print(f"restorer, {EMBEDDINGS} embeddings of {FEATURES}, {arguments.pairs} pairs a step")
    print(f"  an epoch: wall {wall:.2f} s, CPU {cpu:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=32, help="of the target's first stage")
    parser.add_argument("--leaves", choices=["prediction", "label"], default="prediction")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=512)
    arguments = parser.parse_args()
    arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, {arguments.device}, torch {torch.__version__}")
    denoiser_step(arguments)
    restorer_epoch(arguments)


if __name__ == "__main__":
    main()
