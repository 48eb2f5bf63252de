"""Images per second of RIDE: the networks of many images at once, against one image after the other and against vmap.

Every side takes the same number of steps of Algorithm 1 with the paper's settings for the data (Table 3) and gives one
output for each image; rounds of all sides are interleaved, and ratios are taken within a round.

- ``ours`` in chunks of ``--chunk`` images, ``chunk16``, and ``bfloat16``.
- ``loop``: one image after the other, ``nn.Sequential`` with PyTorch's dropout and fused Adam, drawing from
  torch's generator.
- ``vmap``: ``torch.func`` over stacked parameters with the same generator, different for each image, and fused Adam.
- ``grouped``, ``unfolded``: ours with this convolution for all layers.

Also told: the share of a step that random numbers take, and the memory that a chunk needs.

Usage: ``python -m benchmarks.bench_ride [--images 64] [--steps 20] [--rounds 3] [--threads 2] [--data cifar10]``
"""

from __future__ import annotations

import argparse
import functools
import resource
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.optim import Adam

from benchmarks.timing import Spent, timed
from lightning_advdef.data import get_spec
from lightning_advdef.defenses.ride import networks
from lightning_advdef.defenses.ride.networks import FCN
from lightning_advdef.defenses.ride.presets import per_image_network
from lightning_advdef.defenses.ride.purifier import RIDE
from lightning_advdef.rng import SampleRNG

Side = Callable[[RIDE, Tensor], Tensor]
# of a purification with the paper's settings: K = 2000, T = 5
_STEPS = 10_000
_DRAWS = ("normal", "uniform", "chance", "stream")


def ours(purifier: RIDE, images: Tensor) -> Tensor:
    return purifier(images, SampleRNG.default(images))


def with_only(convolution: Callable[..., Tensor], purifier: RIDE, images: Tensor) -> Tensor:
    with patch.object(networks, "convolve", convolution):
        return ours(purifier, images)


def single_network(purifier: RIDE, images: Tensor) -> nn.Sequential:
    """The network of one image as it is usually written."""
    architecture = purifier.architecture
    assert isinstance(architecture, FCN)
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(architecture.layers(images.shape[1]), start=1):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
        nn.init.xavier_uniform_(layers[-2].weight)
        if number in architecture.dropped:
            layers.append(nn.Dropout(purifier.dropout))
    return nn.Sequential(*layers[:-1], nn.Sigmoid()).to(images.device)


def loss_of(purifier: RIDE, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Eq. 7 for a noisy pair of one image ``(1, C, H, W)``."""
    noise = torch.randn(2, *image.shape, device=image.device) * purifier.noise
    kept = torch.rand(1, 1, *image.shape[2:], device=image.device) >= purifier.masked
    squared = (image + noise[0] - network(image + noise[1])).square()
    return (squared * kept).sum() / (kept.sum() * image.shape[1])


def adam_of(purifier: RIDE, parameters: Any) -> Adam:
    return Adam(parameters, lr=purifier.lr, weight_decay=purifier.weight_decay, fused=True)


def loop(purifier: RIDE, images: Tensor) -> Tensor:
    found = []
    for image in images.split(1):
        network = single_network(purifier, images)
        optimizer = adam_of(purifier, network.parameters())
        for _ in range(purifier.iterations):
            optimizer.zero_grad()
            loss_of(purifier, network, image).backward()
            optimizer.step()
        with torch.no_grad():
            found.append(network(image + torch.randn_like(image) * purifier.noise))
    return torch.cat(found)


def vectorised(purifier: RIDE, images: Tensor) -> Tensor:
    singles = [single_network(purifier, images) for _ in images]
    parameters, _ = stack_module_state(singles)  # type: ignore[arg-type]
    optimizer = adam_of(purifier, parameters.values())

    def run(own: dict[str, Tensor], image: Tensor) -> Tensor:
        found: Tensor = functional_call(singles[0], own, (image,))
        return found

    def loss(own: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss_of(purifier, functools.partial(run, own), image)

    gradient = vmap(grad(loss), randomness="different")
    rows = images.unsqueeze(1)
    for _ in range(purifier.iterations):
        for name, value in gradient({name: value.detach() for name, value in parameters.items()}, rows).items():
            parameters[name].grad = value.contiguous()
        optimizer.step()
    with torch.no_grad():
        return vmap(run, randomness="different")(parameters, rows + torch.randn_like(rows) * purifier.noise).squeeze(1)


def in_chunks_of_16(purifier: RIDE, images: Tensor) -> Tensor:
    return ours(replace(purifier, chunk=16), images)


def in_bfloat16(purifier: RIDE, images: Tensor) -> Tensor:
    return ours(replace(purifier, bfloat16=True), images)


SIDES: dict[str, Side] = {
    "ours": ours,
    "chunk16": in_chunks_of_16,
    "bfloat16": in_bfloat16,
    "loop": loop,
    "vmap": vectorised,
    "grouped": functools.partial(with_only, networks.grouped),
    "unfolded": functools.partial(with_only, networks.unfolded),
}


def memory_of(purifier: RIDE, images: Tensor) -> float:
    """Bytes for each image that a chunk needs above what a single image does, by the process's peak on a CPU."""
    purifier = replace(purifier, iterations=3, chunk=len(images))

    def peak(count: int) -> float:
        ours(purifier, images[:count])
        if images.is_cuda:
            return torch.cuda.max_memory_allocated(images.device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    first = peak(1)
    return (peak(len(images)) - first) / max(1, len(images) - 1)


def random_share(purifier: RIDE, images: Tensor, rounds: int) -> float:
    """Share of a step's CPU seconds, on a GPU of its wall seconds, that go to drawing its random numbers."""
    estimation = purifier.start(images[: purifier.chunk], SampleRNG.default(images)[: purifier.chunk])
    drawn: list[Callable[[], object]] = []

    def recorded(method: Callable[..., object]) -> Callable[..., object]:
        def draw(*arguments: Any, **settings: Any) -> object:
            before = len(drawn)
            found = method(*arguments, **settings)
            drawn[before:] = [functools.partial(method, *arguments, **settings)]  # what it drew itself is within it
            return found

        return draw

    with patch.multiple(SampleRNG, **{name: recorded(getattr(SampleRNG, name)) for name in _DRAWS}):
        estimation.train()
    kind, device = int(not images.is_cuda), str(images.device)
    steps = [timed(estimation.train, device)[0][kind] for _ in range(4 * rounds)]
    draws = [timed(lambda: [draw() for draw in drawn], device)[0][kind] for _ in range(4 * rounds)]
    return median(draws) / median(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", choices=("mnist", "cifar10", "imagenet"), default="mnist")
    parser.add_argument("--images", type=int, default=64, help="at least 2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=64, help="images that ours trains together")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="ours is always run")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    spec = get_spec(arguments.data)
    images = torch.rand(arguments.images, *spec.shape, device=arguments.device)
    network = per_image_network("fcn", spec)
    purifier = RIDE(network, rounds=1, iterations=arguments.steps, forwards=1, chunk=arguments.chunk)
    print(f"{arguments.data}, {len(images)} images, {arguments.steps} steps, on {arguments.device}, ", end="")
    print(f"{arguments.threads} threads, torch {torch.__version__}")
    print(f"memory of a chunk: {memory_of(purifier, images[: arguments.chunk]) / 2**20:.2f} MiB for each image")
    print(f"random numbers: {random_share(purifier, images, arguments.rounds):.1%} of a step")
    sides = {name: side for name, side in SIDES.items() if name in ["ours", *arguments.sides]}
    report(compare(sides, purifier, images, arguments.rounds), arguments.steps, len(images))


def compare(sides: dict[str, Side], purifier: RIDE, images: Tensor, rounds: int) -> dict[str, list[Spent]]:
    for side in sides.values():
        side(purifier, images[:2])  # warms up
    times: dict[str, list[Spent]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            spent, found = timed(functools.partial(side, purifier, images), str(images.device))
            assert found.shape == images.shape
            times[name].append(spent)
    return times


def report(times: dict[str, list[Spent]], steps: int, images: int) -> None:
    print(f"{'side':16}{'wall s':>9}{'CPU s':>9}{'images/s':>10}{'times ours, wall':>18}{'CPU':>7}")
    for name, values in times.items():
        wall, cpu = (median(value[kind] for value in values) for kind in (0, 1))
        pairs = list(zip(values, times["ours"], strict=True))
        slower = [median(other[kind] / own[kind] for other, own in pairs) for kind in (0, 1)]
        print(f"{name:16}{wall:9.3f}{cpu:9.3f}{images * steps / _STEPS / wall:10.3f}{slower[0]:18.2f}{slower[1]:7.2f}")


if __name__ == "__main__":
    main()
