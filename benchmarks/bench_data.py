"""Time per epoch of feeding CIFAR-10-like images with random crop and flip: ours, torchvision's usual way, kornia.

    python -m benchmarks.bench_data --images 5000
    python -m benchmarks.bench_data --root data        # the real CIFAR-10

Every round measures each pipeline once, one after the other in the same process on one core, so that a slow moment of
the machine hits all of them alike; the table gives medians over the rounds, and ratios of the same round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable

import kornia.augmentation as kornia_augmentation
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.timing import Spent, timed
from lightning_advdef.data import CIFAR10, DataModule
from lightning_advdef.data.base import Split
from lightning_advdef.data.sources import ImageSource, MemoryImages
from lightning_advdef.rng import SampleRNG

BATCH_SIZE = 128


class InMemory(DataModule):
    """Our pipeline over given pixels."""

    spec: str = "cifar10"

    def __init__(self, source: ImageSource) -> None:
        super().__init__(batch_size=BATCH_SIZE, val_fraction=0.0, augment="crop_flip")
        self.given = source

    def load(self, split: Split) -> ImageSource:
        """The given pixels for every split."""
        return self.given


class PerImage(Dataset[tuple[Tensor, int]]):
    """What ``torchvision.datasets.CIFAR10`` does with the usual transforms."""

    def __init__(self, source: MemoryImages) -> None:
        self.pixels = source.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = source.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def read_images(root: str | None, count: int) -> MemoryImages:
    if root is None:
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        return MemoryImages(pixels, torch.randint(0, 10, (count,)))
    source = CIFAR10(root=root).load("train")
    assert isinstance(source, MemoryImages)
    return MemoryImages(source.pixels[:count], source.labels[:count])


def our_epoch(module: InMemory) -> Iterable[Tensor]:
    for batch in module.train_dataloader():
        # what the hook on_after_batch_transfer does in training
        rng = SampleRNG.for_images(batch.indices, 0, "train", 0).stream("augment")
        yield module.augment_images(batch.images, rng)


def kornia_epoch(module: InMemory) -> Iterable[Tensor]:
    change = kornia_augmentation.AugmentationSequential(
        kornia_augmentation.RandomCrop((32, 32), padding=4), kornia_augmentation.RandomHorizontalFlip()
    )
    for batch in module.train_dataloader():
        yield change(batch.images)


def torchvision_epoch(dataset: PerImage) -> Iterable[Tensor]:
    for images, _ in DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True):
        yield images


def measure(epoch: Callable[[], Iterable[Tensor]], count: int) -> Spent:
    spent, seen = timed(lambda: sum(len(images) for images in epoch()))
    assert seen == count
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", help="folder of the real CIFAR-10; random pixels without it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = read_images(arguments.root, arguments.images)
    module, per_image = InMemory(source), PerImage(source)
    module.setup("fit")
    pipelines: dict[str, Callable[[], Iterable[Tensor]]] = {
        "ours": lambda: our_epoch(module),
        "kornia on our batches": lambda: kornia_epoch(module),
        "torchvision per image": lambda: torchvision_epoch(per_image),
    }
    for epoch in pipelines.values():  # the first batch pays for lazy set-up
        next(iter(epoch()))
    rounds = [
        {name: measure(epoch, len(source.labels)) for name, epoch in pipelines.items()} for _ in range(arguments.rounds)
    ]
    print(f"{len(source.labels)} images, {arguments.rounds} rounds, 1 thread, torch {torch.__version__}")
    print(f"{'pipeline':24}{'wall s':>8}{'CPU s':>8}{'times ours (wall)':>20}")
    for name in pipelines:
        wall = statistics.median(times[name].wall for times in rounds)
        cpu = statistics.median(times[name].cpu for times in rounds)
        ratio = statistics.median(times[name].wall / times["ours"].wall for times in rounds)
        print(f"{name:24}{wall:8.2f}{cpu:8.2f}{ratio:20.1f}")


if __name__ == "__main__":
    main()
