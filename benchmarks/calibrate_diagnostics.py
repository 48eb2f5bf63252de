"""What the diagnostics measure of sound networks and of planted defenses: where their thresholds come from.

    python -m benchmarks.calibrate_diagnostics --networks digits
    python -m benchmarks.calibrate_diagnostics --networks mnist --images 100

MNIST and CIFAR-10 lie where ``benchmarks/attacks/networks.py`` says.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.attacks.networks import load_images
from benchmarks.diagnostics.digits import EPS, convolutional, digits, perceptron, trained
from benchmarks.diagnostics.planted import PLANTED
from lightning_advdef import evaluate
from lightning_advdef.attacks import APGD, FGSM, PGD, Cascade, Noise, Square
from lightning_advdef.checkpoints import load_defense
from lightning_advdef.evaluation import Scenario
from lightning_advdef.types import Batch

Subject = tuple[str, nn.Module, Batch, float]
_STANDARD = {"mnist": 0.3, "cifar10": 8 / 255}
_SOUND = {"mnist": "mnist_*.ckpt", "cifar10": "cifar10_resnet_*.ckpt"}


def suite(eps: float) -> list[Scenario]:
    """Something for every check that needs no adaptive surrogate."""
    short, square = PGD(eps, steps=20), Square(eps, queries=300)
    attacks = {
        "fgsm": FGSM(eps),
        "pgd20": short,
        "pgd100": PGD(eps, steps=100),
        "square": square,
        "noise": Noise(eps, kind="sign"),
        "cascade": Cascade(attacks={"apgd": APGD(eps, steps=50), "square": square}),
    }
    return [Scenario(name, attack) for name, attack in attacks.items()]


def digit_networks() -> Iterator[tuple[str, nn.Module]]:
    """Seeds, widths, depths, activations; plain and adversarially trained."""
    shapes = [
        (build, width, activation)
        for build, widths in ((perceptron, (16, 64, 256)), (convolutional, (4, 16)))
        for width in widths
        for activation in (nn.ReLU, nn.Tanh, nn.GELU)
    ]
    for seed, (build, width, activation) in enumerate(shapes):
        for robust in (False, True):
            torch.manual_seed(seed)
            name = f"{build.__name__} {width} {activation.__name__}{' robust' if robust else ''}"
            yield name, trained(build(width, activation), robust)


def subjects(kind: str, count: int) -> Iterator[Subject]:
    """Name, network, images and budget; of digits the planted defenses as well."""
    if kind == "digits":
        images = Batch(*(tensor[:count] for tensor in digits("test")))
        for name, network in digit_networks():
            yield name, network, images, EPS
        for planted in PLANTED:
            yield f"planted {planted.__name__}", planted(network), images, EPS
        return
    for path in sorted(Path("checkpoints").glob(_SOUND[kind])):
        yield path.stem, load_defense(path).eval(), load_images(kind, count), _STANDARD[kind]


def main() -> None:
    """Prints what was measured of each network, then a row per check: sound networks, planted defenses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", choices=["digits", "mnist", "cifar10"], default="digits")
    parser.add_argument("--images", type=int, default=200)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    sound, planted = defaultdict(list), defaultdict(list)
    for name, network, batch, eps in subjects(settings.networks, settings.images):
        found = evaluate(network, batch.images, batch.labels, suite(eps), indices=batch.indices).result
        print(f"{name}: clean {found['clean_accuracy']['value']:.3f}")
        for finding in found["diagnostics"]:
            if finding["measured"] is not None:
                raised = "RAISED " if finding["status"] == "raised" else ""
                (planted if "planted" in name else sound)[finding["name"]].append(finding["measured"])
                print(f"    {raised}{finding['name']} {finding['scenario']}: {finding['measured']:.4f}", flush=True)
    print("\n| check | sound networks | planted defenses |\n|---|---|---|")
    for check, values in sound.items():
        print(f"| `{check}` | {_range(values)} | {_range(planted[check])} |")


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}" if values else ""


if __name__ == "__main__":
    main()
