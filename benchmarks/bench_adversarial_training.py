"""Seconds of one training step of the adversarial-training methods, relative to a clean step of the same network.

Beside each stands what its arithmetic needs in principle: multiply-accumulates of all passes, those of the generator
counted as its own. Steps of all methods are interleaved; the median of their ratios is printed.

Usage: ``python -m benchmarks.bench_adversarial_training [--width 64] [--batch 128] [--rounds 5] [--threads 1]``
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_advdef.attacks import PGD, Noise, RandomStartFGSM
from lightning_advdef.data import get_spec
from lightning_advdef.defenses import AdversarialTrainingModule, DefenseModule, GANAdvTrainModule, StandardModule
from lightning_advdef.defenses.adversarial_training import TRADES
from lightning_advdef.models import ConvPoolCNN, PerturbationGenerator
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

SPEC = get_spec("cifar10")
NATURAL = Noise(0.001, "linf", "gaussian")  # the start of TRADES


class Method(NamedTuple):
    """A module, and passes per image: of the classifier, and of the generator."""

    module: DefenseModule
    classifier: float
    generator: float = 0.0


def methods(width: int) -> dict[str, Method]:
    """A forward pass is 1, a gradient by the images 1 more, by the weights 1 more again."""
    network = functools.partial(ConvPoolCNN, width=width)
    generator = functools.partial(PerturbationGenerator, width=2 * width, hidden=16 * width)
    trained = functools.partial(AdversarialTrainingModule, network, spec=SPEC.name)
    against = functools.partial(GANAdvTrainModule, network, generator, spec=SPEC.name)
    pgd = PGD(0.1, "l2", steps=10, step_size=0.1 / 6)
    kl = PGD(8 / 255, steps=10, step_size=2 / 255, loss="kl_divergence", start=NATURAL)
    return {
        "clean": Method(StandardModule(network, spec=SPEC.name), 3),
        "Fast AT": Method(trained(RandomStartFGSM(8 / 255)), 2 + 3),
        "PGN, detach": Method(against(), 2 + 3, 3),
        # second derivatives pass the classifier twice more in each direction, the first loss the generator once more
        "PGN, through": Method(against(gradient_flow="through"), 2 + 3 + 4, 4),
        "PGD-10": Method(trained(pgd), 10 * 2 + 3),
        "TRADES": Method(trained(kl, objective=TRADES()), 1 + 10 * 2 + 2 * 3),
    }


def multiply_accumulates(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Of one pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2


def stepper(module: DefenseModule, batch: Batch) -> Callable[[], float]:
    """A training step that gives its CPU seconds; wall seconds where a GPU works."""
    module.to(batch.images.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-4, fused=True)
    gpu = batch.images.is_cuda

    def clock() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() if gpu else time.process_time()

    def step() -> float:
        started = clock()
        with torch.autocast(batch.images.device.type, torch.bfloat16):
            loss = module.loss(batch, SampleRNG.for_images(batch.indices))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return clock() - started

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="filters of the first convolution; the paper's 64")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.rand(arguments.batch, *SPEC.shape, device=device)
    indices = torch.arange(arguments.batch, device=device)
    batch = Batch(images, indices % SPEC.classes, indices)
    found = methods(arguments.width)
    steps = {name: stepper(method.module, batch) for name, method in found.items()}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(arguments.rounds + 1):
        for name, step in steps.items():
            measured = step()
            if number:  # the first round warms up
                seconds[name].append(measured)
    player = found["PGN, detach"].module
    one = images[:1], batch.labels[:1], images[:1]
    classifier = multiply_accumulates(player.classifier, images[:1])
    generator = multiply_accumulates(player.generator, *one)  # type: ignore[arg-type]
    print(f"width {arguments.width}, batch {arguments.batch}, bfloat16 on {device.type}, torch {torch.__version__}")
    print(f"{arguments.threads} threads; a pass of the classifier is {classifier / 1e6:.0f} M multiply-accumulates,")
    print(f"of the generator {generator / 1e6:.0f} M")
    print("| step | seconds | times a clean step | in principle | ratio | PGD-10 over it |\n|---|---|---|---|---|---|")
    for name, method in found.items():
        relative = median(own / clean for own, clean in zip(seconds[name], seconds["clean"], strict=True))
        needed = (method.classifier * classifier + method.generator * generator) / (3 * classifier)
        below = median(pgd / own for own, pgd in zip(seconds[name], seconds["PGD-10"], strict=True))
        print(
            f"| {name} | {median(seconds[name]):.3f} | {relative:.2f} | {needed:.2f} | {relative / needed:.2f} "
            f"| {below:.2f} |"
        )


if __name__ == "__main__":
    main()
