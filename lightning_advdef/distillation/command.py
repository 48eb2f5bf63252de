"""``advdef distill``: pairs, the fit, and a file that BPDA can use."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_advdef.attacks.surrogates.distilled import save_distilled
from lightning_advdef.cli import AdvDefCLI
from lightning_advdef.data.specs import standard_eps
from lightning_advdef.distillation.fit import fit
from lightning_advdef.distillation.pairs import PairMaker
from lightning_advdef.types import Eps

_LINES = 10


def parser() -> argparse.ArgumentParser:
    """The command's own arguments; all others are those of ``advdef test``."""
    made = argparse.ArgumentParser(
        prog="advdef distill",
        description="Fit a small network to what the purifier of a defense does, as a stand_in for BPDA. Further "
        "arguments are those of advdef test: -c CONFIG, --model.weights FILE, --trainer.accelerator gpu. Each image is "
        "purified three times (clean, with noise, under attack); that is kept in FILE.pairs and read when it is asked "
        "for again, so other --epochs or --width cost only the fit.",
        allow_abbrev=False,
    )
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    made.add_argument("--images", type=_count, default=500, help="training images (default: %(default)s)")
    made.add_argument("--noise", type=Eps, help="largest change of a pixel (default: what is usual for the data)")
    made.add_argument("--batch", type=_count, default=50, help="images purified at once (default: %(default)s)")
    made.add_argument("--epochs", type=_count, default=20, help="passes over all pairs (default: %(default)s)")
    made.add_argument("--width", type=_count, default=32, help="filters of the network (default: %(default)s)")
    return made


def main(arguments: Sequence[str]) -> None:
    """Makes pairs, fits and writes.

    Raises:
        ValueError: If the defense has no purifier, or nobody knows how large the noise should be.
        CheckpointError: If the weights of the defense cannot be read.
    """
    own, others = parser().parse_known_args(arguments)
    cli = AdvDefCLI(args=others, run=False)
    defense, device = cli.model, cli.trainer.strategy.root_device
    defense.setup("distill")
    noise = own.noise if own.noise is not None else standard_eps(defense.spec.name, "linf")
    if noise is None:
        raise ValueError(f"no size of perturbations is usual on {defense.spec.name}: give --noise")
    maker = PairMaker(defense.to(device), Eps(noise), own.output.with_name(f"{own.output.name}.pairs"))
    pairs = maker.make(
        cli.datamodule, own.images, own.batch, lambda done: print(f"purified: {done} images", flush=True)
    )
    every = max(1, own.epochs // _LINES)

    def report(epoch: int, error: float, identity: float) -> None:
        if epoch % every == 0 or epoch == own.epochs:
            print(f"epoch {epoch}/{own.epochs}: held-out MSE {error:.3e}, identity {identity:.3e}", flush=True)

    found = fit(pairs, own.epochs, own.width, device, report)
    save_distilled(found.stand_in, own.output)
    print(f"distilled purifier: {own.output}")
    if found.error >= found.identity_error:
        print("the identity is closer to the purifier than this stand-in: give more --images or --epochs")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count
