"""Our attacks against torchattacks, foolbox, pyautoattack and ART: time, passes, and what they achieve.

    python -m benchmarks.bench_attacks --networks mnist_lenet_reference --attacks PGD DeepFool --images 100
    python -m benchmarks.bench_attacks --networks mnist_lenet_adversarial=other.ckpt --attacks APGD --device cuda
    python -m benchmarks.bench_attacks --render first.jsonl second.jsonl

Every library gets the same network, images, budget and steps, in one process, one after the other in every round. One
function judges all results in float32; images that are wrong from the start are not robust, and results outside the
budget break nothing. Each run is appended to ``--output`` as soon as it is done, so parts can be run one by one; the
tables are rendered from any number of such files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.attacks.cases import CASES
from benchmarks.attacks.measure import OURS, PEERS, Record, to_json
from benchmarks.attacks.networks import NETWORKS, Target, load_target
from benchmarks.attacks.rounds import Plan, run_case, warm_up
from benchmarks.attacks.table import render


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names, or name=path of a checkpoint")
    parser.add_argument("--attacks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--norms", nargs="+", choices=("linf", "l2"), default=["linf", "l2"])
    parser.add_argument("--libraries", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--slow-images", type=int, default=20, help="for libraries that go image by image")
    parser.add_argument("--batch", type=int, default=200, help="images attacked at once")
    parser.add_argument("--rounds", type=int, default=1, help="per seed")
    parser.add_argument("--seeds", type=int, default=3, help="attacks without chance get more rounds instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps-divided-by", type=int, default=1, help="for a quick look; AutoAttack stays as it is")
    parser.add_argument("--eps", type=float, help="instead of the network's own budget")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_attacks.jsonl"), help="runs are appended here")
    parser.add_argument("--render", nargs="+", type=Path, help="only print the tables of these files")
    return parser.parse_args()


def main() -> None:
    options = read_arguments()
    if not options.render:
        torch.set_num_threads(options.threads)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        for entry in options.networks:
            run_network(entry, options)
    print(render(options.render or [options.output]))


def run_network(entry: str, options: argparse.Namespace) -> None:
    names = ("libraries", "images", "slow_images", "batch", "seeds", "rounds", "steps_divided_by", "device", "eps")
    plan = Plan(**{name: getattr(options, name) for name in names})
    try:
        target: Target = load_target(entry, plan.images, plan.device)
    except (ValueError, OSError) as error:
        print(f"{entry} is left out: {error}", file=sys.stderr)
        return
    warm_up(target, plan)
    for attack in options.attacks:
        for norm in CASES[attack].norms:
            if norm in options.norms:
                for record in run_case(target, attack, norm, plan):
                    write(record, options.output)


def write(record: Record, output: Path) -> None:
    with output.open("a") as file:
        file.write(json.dumps(to_json(record)) + "\n")
    told = record.failed or f"{record.wall:.2f} s, {record.verdict.count('1') / record.images:.1%} robust"
    print(f"{record.network} {record.attack} {record.norm} {record.library}, seed {record.seed}: {told}", flush=True)


if __name__ == "__main__":
    main()
