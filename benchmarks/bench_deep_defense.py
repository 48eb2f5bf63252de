"""Seconds of one Deep Defense training step of LeNet on 100 images: two-pass unrolling against the plain one.

Usage: ``python -m benchmarks.bench_deep_defense [--root data] [--rounds 7] [--threads 2]``
"""

from __future__ import annotations

import argparse
import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.datasets import MNIST

from benchmarks.timing import Spent, print_ratio, timed
from lightning_advdef.defenses.deep_defense.regularizer import deep_defense_regularizer, regularized_view
from lightning_advdef.defenses.deep_defense.unrolled_deepfool import plan_paths, replay
from tests.defenses.deep_defense.naive_deepfool import naive_perturbation

WEIGHT = 15.0


def lenet() -> nn.Sequential:
    convolutions = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


def load(root: str) -> tuple[Tensor, Tensor, str]:
    try:
        data = MNIST(root, train=True, download=False)
    except RuntimeError:
        labels = torch.arange(6000) % 10
        patterns = torch.rand(10, 1, 28, 28)
        return (patterns[labels] + 0.5 * torch.randn(6000, 1, 28, 28)).clamp(0, 1), labels, "synthetic"
    return data.data[:, None] / 255, data.targets, "MNIST"


def train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for rows in torch.randperm(len(images)).split(100):
        optimizer.zero_grad()
        cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()


def two_pass_step(network: nn.Module, images: Tensor, labels: Tensor, overshoot: float) -> None:
    view = regularized_view(network)
    path = plan_paths(view, images, labels, overshoot=overshoot)
    regularizer = deep_defense_regularizer(replay(view, images, path), images, path.correct)
    (cross_entropy(network(images), labels) + WEIGHT * regularizer).backward()


def plain_step(network: nn.Module, images: Tensor, labels: Tensor, overshoot: float) -> None:
    logits = network(images)
    perturbation = naive_perturbation(network, images, labels, steps=5, overshoot=overshoot)
    regularizer = deep_defense_regularizer(perturbation, images, logits.argmax(1) == labels)
    (cross_entropy(logits, labels) + WEIGHT * regularizer).backward()


def compare(title: str, network: nn.Module, images: Tensor, labels: Tensor, overshoot: float, rounds: int) -> None:
    path = plan_paths(regularized_view(network), images, labels, overshoot=overshoot)
    times: dict[str, list[Spent]] = {"two passes": [], "plain": []}
    for number in range(rounds + 1):
        for name, step in (("two passes", two_pass_step), ("plain", plain_step)):
            network.zero_grad()
            spent, _ = timed(functools.partial(step, network, images, labels, overshoot))
            if number:  # the first round warms up
                times[name].append(spent)
    print(f"{title}: {path.steps_taken.float().mean():.2f} steps per image, {int((~path.correct).sum())} wrong images")
    print_ratio(times, slow="plain", fast="two passes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of MNIST; without it, synthetic images are used")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    images, labels, source = load(arguments.root)
    network = lenet()
    train(network, images[:20000], labels[:20000])
    print(f"LeNet, trained once on up to 20000 images of {source}")
    print(f"batches of 100, {arguments.threads} threads, torch {torch.__version__}")
    compare("(a) images stop when fooled", network, images[:100], labels[:100], 0.02, arguments.rounds)
    # half of Delta never crosses the boundary, so all images take all steps
    compare("(b) all images take 5 steps", network, images[:100], labels[:100], -0.5, arguments.rounds)


if __name__ == "__main__":
    main()
