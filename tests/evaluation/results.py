"""Result folders made by hand, whose curves are known."""

import json

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from lightning_advdef.evaluation.run import read_runs


def accuracy(value):
    return {"value": value, "interval": [value - 0.1, value + 0.1], "images": 4}


def attack_of(name, **settings):
    return {"class_path": f"lightning_advdef.attacks.{name}", "init_args": settings}


def minimal(name="cw", robust=0.0, **changes):
    norms = dict.fromkeys(("mean_excluded", "median_excluded", "mean_included", "median_included"), 0.5)
    row = {"name": name, "attack": attack_of("CarliniWagnerL2"), "access": "white", "norm": "l2", "rho": 0.1}
    row["robust_accuracy"] = accuracy(robust)
    return row | {"norms": norms, "passes": {"forward": 1.0, "backward": 1.0}} | changes


def spending(name, robust, attack="FGM", **changes):
    row = {"name": name, "attack": attack_of(attack), "access": "white", "norm": "l2", "after": None}
    return row | {"robust_accuracy": accuracy(robust)} | changes


def columns(right, *attacks):
    """Rows of an evaluation: which images are right, and for each attack its name, norms and who is right after it."""
    right = np.array(right)
    rows = {"label": np.zeros(len(right), dtype=np.int64), "clean/prediction": np.where(right, 0, 1)}
    rows["clean/correct"] = right.astype(np.float32)
    for name, norms, after in attacks:
        rows[f"{name}/l2"] = np.array(norms, dtype=np.float32)
        rows[f"{name}/prediction"] = np.where(after, 0, 1)
        rows[f"{name}/correct"] = np.array(after, dtype=np.float32)
    return rows


def write(folder, scenarios, rows):
    """A run folder with a finished evaluation."""
    folder.mkdir(parents=True)
    clean = accuracy(float(rows["clean/correct"].mean()))
    result = {"clean_accuracy": clean, "scenarios": scenarios, "worst_case": []}
    (folder / "robustness.json").write_text(json.dumps(result))
    np.savez(folder / "robustness.npz", **rows)
    return folder


def evaluated(folder, norms, right=(True, True, True, False), after=(False, False, False, False), **changes):
    """A run with one minimal-norm scenario, ``cw``."""
    return write(folder, [minimal(**changes)], columns(right, ("cw", norms, after)))


def log(folder, scalars):
    """TensorBoard events of some scalars: value by step, by tag."""
    with SummaryWriter(str(folder)) as writer:
        for tag, values in scalars.items():
            for step, value in values.items():
                writer.add_scalar(tag, value, step)


def one(folder):
    (run,) = read_runs([folder])
    return run
