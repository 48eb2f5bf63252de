"""Seconds of a defended forward pass: Active Defense as it is against the straightforward loop, on the same images.

The straightforward loop runs the whole network in every step, keeps its batch until the slowest image is done, and
makes one vote after another. Weights are frozen and the noise is the same in both. Rounds of both are interleaved.

Without ``--weights`` the network has random weights; images differ in contrast, and delta and the step size are set so
that the slow ones take about twice the steps of the fast ones.

Usage: ``python -m benchmarks.bench_active_defense [--device cpu] [--votes 10] [--rounds 3] [--weights FILE]``
"""

from __future__ import annotations

import argparse
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.attacks.networks import load_images
from benchmarks.timing import Spent, print_ratio, timed
from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.checkpoints import load_weights
from lightning_advdef.defenses import FeatureSmoothingModule
from lightning_advdef.defenses.feature_smoothing.feature_loss import feature_loss
from lightning_advdef.models import WideResNet
from lightning_advdef.rng import SampleRNG


class Answer(NamedTuple):
    """Logits ``(N, K)`` and the steps of each vote of each image."""

    logits: Tensor
    steps: Tensor


def ours(module: FeatureSmoothingModule, images: Tensor, rng: SampleRNG) -> Answer:
    with torch.no_grad():
        logits = module(images, rng)
    assert module.last_steps is not None
    return Answer(logits, module.last_steps)


def straightforward(module: FeatureSmoothingModule, images: Tensor, rng: SampleRNG) -> Answer:
    seen: list[Tensor] = []
    tapped = module.classifier.get_submodule(module.tap.layer)
    handle = tapped.register_forward_hook(lambda _, __, output: seen.append(output))
    votes, steps = [], []
    for vote in range(module.votes):
        own = rng.stream("vote", vote) if module.votes > 1 else rng
        image = module.purifier.init(images, own)
        taken = torch.zeros(len(image), dtype=torch.int64, device=image.device)
        while True:
            leaf = image.detach().requires_grad_()
            module.classifier(leaf)
            features = seen.pop().flatten(1)
            loss = (features - features.mean(dim=1, keepdim=True)).abs().mean(dim=1)
            moving = (loss > module.delta) & (taken < module.max_iter)
            if not moving.any():
                break
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            image = torch.where(moving.view(-1, 1, 1, 1), image - module.step_size * gradient, image)
            taken += moving
        with torch.no_grad():
            votes.append(module.classifier(image).softmax(dim=1))
        steps.append(taken)
    handle.remove()
    return Answer(torch.stack(votes).mean(dim=0).log(), torch.cat(steps))


def random_module(depth: int, width: int, votes: int) -> FeatureSmoothingModule:
    """Random weights with the batch statistics of random images."""
    network = functools.partial(WideResNet, depth=depth, width=width)
    module = FeatureSmoothingModule(network, spec="cifar10", delta=0.0, votes=votes)
    with torch.no_grad():
        for _ in range(10):
            module.classifier(random_images(32))
    return module


def random_images(count: int) -> Tensor:
    return 0.5 + torch.linspace(0.7, 1, count).view(-1, 1, 1, 1) * (torch.rand(count, 3, 32, 32) - 0.5)


def spread_steps(module: FeatureSmoothingModule, images: Tensor, steps: int) -> None:
    """Sets delta and the step size for about so many steps, twice as many for rough images as for flat ones."""
    with attack_mode(module):
        leaf = module.purifier.init(images, SampleRNG.default(images)).requires_grad_()
        loss = feature_loss(module.tap.features(leaf))
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    low, high = loss.detach().quantile(loss.new_tensor([0.05, 0.95])).tolist()
    module.given_delta = 2 * low - high
    module.step_size = (loss.mean().item() - module.given_delta) / (
        steps * gradient.square().sum().item() / len(images)
    )


def prepared(arguments: argparse.Namespace) -> tuple[FeatureSmoothingModule, Tensor]:
    """Module and images on the device."""
    module = random_module(arguments.depth, arguments.width, arguments.votes)
    if arguments.weights is None:
        images = random_images(arguments.images)
        spread_steps(module.eval(), images, arguments.steps)
    else:
        load_weights(module, arguments.weights, complete=True)
        module.given_delta = arguments.delta
        images = load_images("cifar10", arguments.images).images
    if arguments.step_size is not None:
        module.step_size = arguments.step_size
    module.max_iter = arguments.max_iter
    if arguments.channels_last:
        module.to(memory_format=torch.channels_last)
    return module.eval().to(arguments.device), images.to(arguments.device)


def report(times: dict[str, list[Spent]], found: dict[str, Answer]) -> None:
    own, other = found["ours"], found["straightforward"]
    slowest = other.steps.view(-1, len(other.logits)).amax(dim=1).float().mean()
    print(f"steps: mean {own.steps.float().mean():.1f}, {own.steps.min()} to {own.steps.max()}", end="")
    print(f", slowest image of a vote {slowest:.1f}")
    equal = ((own.steps - other.steps).abs() <= 1).float().mean()
    same = (own.logits.argmax(dim=1) == other.logits.argmax(dim=1)).float().mean()
    print(f"equal steps +-1: {equal:.2%}, equal predictions: {same:.2%}")
    print_ratio(times, slow="straightforward", fast="ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--votes", type=int, default=10)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="about so many on average, with random weights")
    parser.add_argument("--max-iter", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true", help="the memory format of both sides' weights")
    parser.add_argument(
        "--weights", help="calibrated checkpoint, run on test images of CIFAR-10 ($ADVDEF_DATA, $ADVDEF_CIFAR)"
    )
    parser.add_argument("--delta", type=float, help="in place of the one that calibration found, for --weights")
    parser.add_argument("--step-size", type=float, help="in place of the paper's 80, or of the one that is found")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    module, images = prepared(arguments)
    print(
        f"WRN-{arguments.depth}-{arguments.width}, {len(images)} images, {arguments.votes} votes, float32 on ", end=""
    )
    print(f"{arguments.device}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"delta {module.delta:.5g}, step size {module.step_size:.5g}, at most {module.max_iter} steps")
    sides = {"ours": ours, "straightforward": straightforward}
    times: dict[str, list[Spent]] = {name: [] for name in sides}
    found: dict[str, Answer] = {}
    rng = SampleRNG.default(images)
    with attack_mode(module):
        for side in sides.values():
            side(module, images[:2], rng[:2])  # warms up
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                spent, found[name] = timed(functools.partial(side, module, images, rng), arguments.device)
                times[name].append(spent)
    report(times, found)


if __name__ == "__main__":
    main()
