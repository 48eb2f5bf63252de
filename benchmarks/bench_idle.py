"""How long one of several processes has nothing to do while another still attacks.

A cascade spends a few passes on an image that falls to its first attack and hundreds on one that falls to none. Images
are handed out one batch after the other, against equal shares fixed beforehand; rounds of both are interleaved. Passes
do not depend on what else the machine does, seconds do.

Usage: ``python -m benchmarks.bench_idle [--images 200] [--processes 2] [--rounds 3]
[--network cifar10_resnet_adversarial --eps 8/255]``, with MNIST at ``$ADVDEF_DATA``, CIFAR-10 there or as an image
folder at ``$ADVDEF_CIFAR``
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from pytorch_lightning import Trainer

from benchmarks.attacks.networks import NETWORKS, data_of
from lightning_advdef.attacks import APGD, Cascade, Square, TargetedAPGD
from lightning_advdef.callbacks import RobustnessEvaluation
from lightning_advdef.checkpoints import load_defense
from lightning_advdef.evaluation import Scenario
from lightning_advdef.evaluation.shares import Share, idle

FOLDER = Path("runs", "bench_idle")


def attacks(eps: str) -> Scenario:
    parts = {
        "apgd": APGD(eps=eps, steps=20),
        "apgd_t": TargetedAPGD(eps=eps, steps=20, targets=3),
        "square": Square(eps=eps, queries=200),
    }
    return Scenario("cascade", Cascade(attacks=parts))


def evaluate(arguments: argparse.Namespace, handed_out: bool) -> list[Share]:
    """What each process did."""
    evaluation = RobustnessEvaluation(
        [attacks(arguments.eps)],
        batch_size=arguments.batch,
        folder=str(FOLDER),
        overwrite=True,
        progress=False,
        diagnostics=False,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=arguments.processes,
        strategy="ddp",
        logger=False,
        callbacks=[evaluation],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        # a number of batches keeps the shares that Lightning gives
        limit_test_batches=1.0 if handed_out else arguments.images,
    )
    name = arguments.network
    data = data_of(NETWORKS[name].data, arguments.batch * arguments.processes, arguments.images)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.test(load_defense(Path("checkpoints", f"{name}.ckpt")), datamodule=data, verbose=False)
    shares: list[Share] = json.loads((FOLDER / "robustness.json").read_text())["processes"]
    return shares


def report(name: str, rounds: Sequence[Sequence[Share]]) -> None:
    print(f"{name}:")
    for shares in rounds:
        done = ", ".join(f"{s['images']:.0f} images {s['passes']:.0f} passes {s['seconds']:.1f} s" for s in shares)
        print(f"  {done}: idle {idle(shares):.1%} of the seconds, {idle(shares, 'passes'):.1%} of the passes")
    seconds, passes = (median(idle(shares, measure) for shares in rounds) for measure in ("seconds", "passes"))
    slowest = median(max(share["seconds"] for share in shares) for shares in rounds)
    print(f"  median: idle {seconds:.1%} of the seconds, {passes:.1%} of the passes; all done after {slowest:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="largest batch attacked at once")
    parser.add_argument("--eps", default="0.28", help="budget; 8/255 fits CIFAR-10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", default="mnist_lenet_adversarial", choices=NETWORKS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sides = {"handed out": True, "equal shares": False}
    rounds: dict[str, list[list[Share]]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, handed_out in sides.items():
            rounds[name].append(evaluate(arguments, handed_out))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{arguments.images} images, {arguments.processes} processes of one thread, torch {torch.__version__}")
        for name, found in rounds.items():
            report(name, found)


if __name__ == "__main__":
    main()
