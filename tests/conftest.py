import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_advdef.__main__ import run

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def one_thread_in_children():
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def scenario(name, attack, surrogate=None, **settings):
    """One entry of ``evaluation.scenarios``."""
    entry = {"name": name, "attack": {"class_path": attack, "init_args": settings}}
    return entry | ({"surrogate": surrogate} if surrogate else {})


def result_of(folder):
    """Summary and columns of a result folder."""
    summary = json.loads((folder / "robustness.json").read_text(), parse_constant=pytest.fail)
    with np.load(folder / "robustness.npz") as columns:
        return summary, dict(columns)


def raised(summary):
    """The diagnostics of a result that are raised, by name."""
    return {finding["name"]: finding for finding in summary["diagnostics"] if finding["status"] == "raised"}


class Command:
    """``advdef`` in this process, in a folder of its own."""

    def __init__(self, folder):
        self.runs = folder

    def __call__(self, command, *arguments, name="run", quiet=True):
        run([command, *(QUIET if quiet else []), "--runs", str(self.runs), "--name", name, *map(str, arguments)])
        return self.runs / name

    def digits(self, command, *arguments, scenarios=None, name="run", limit=20, **options):
        """A small MLP on the digits with fixed weights."""
        chosen = ["--evaluation.scenarios", json.dumps(scenarios)] if scenarios else []
        return self(
            command,
            *("--model", "StandardModule", "--model.network", "MLP", "--model.network.hidden", "[32]"),
            *("--data", "Digits", "--data.limit", limit, "--data.limit_train", "128", "--data.limit_val", "32"),
            *(["--model.weights", GOLDEN / "digits_mlp.safetensors"] if command != "fit" else []),
            *chosen,
            *arguments,
            name=name,
            **options,
        )


@pytest.fixture
def advdef(tmp_path):
    return Command(tmp_path / "runs")


@pytest.fixture(scope="session")
def ddp():
    """Two gloo processes for all tests that need them, started by the first."""
    from tests.ddp import Pool

    pool = Pool()
    yield pool
    pool.close()
