"""A run folder with all that a report shows."""

import json

import numpy as np
import torch

from lightning_advdef.attacks import PGD
from lightning_advdef.evaluation.gallery import Gallery, Kept
from lightning_advdef.evaluation.run import read_runs
from lightning_advdef.evaluation.scenario import Scenario
from tests.evaluation.results import attack_of, columns, minimal, write

PASSES = {"forward": 3.0, "backward": 2.0}
RIGHT = (True, True, True, True, False)
RAISED = {
    "name": "gradient_is_zero",
    "status": "raised",
    "scenario": "bpda",
    "measured": 0.5,
    "threshold": 0.05,
    "unit": "of the images",
    "meaning": "the gradient vanishes & says nothing",
    "next": "- name: margin",
}
CLEAR = RAISED | {"name": "noise_flips", "status": "clear", "scenario": "", "next": ""}


def stated(after):
    return {"value": sum(after) / len(after), "interval": [0.1, 0.9], "images": len(after)}


def bounded(name, access, eps, after, attack="PGD"):
    row = {"name": name, "attack": attack_of(attack, eps=eps), "access": access, "norm": "linf", "eps": eps}
    return row | {"surrogate": access, "robust_accuracy": stated(after), "passes": PASSES, "after": None}


def evaluated(folder, diagnostics=(), scenarios=(), config="", count=5):
    """Five images (or a multiple of them): gray box leaves three right, BPDA one at eps 0.1 and two at 0.05."""
    attacks = [
        bounded("gray", "gray", 0.1, (True, True, True, False, False)),
        bounded("bpda/eps0.05", "bpda", 0.05, (True, False, False, True, False)),
        bounded("bpda/eps0.1", "bpda", 0.1, (False, False, False, True, False)),
        *scenarios,
    ]
    after = {"gray": (1, 1, 1, 0, 0), "bpda/eps0.05": (1, 0, 0, 1, 0), "bpda/eps0.1": (0, 0, 0, 1, 0)}
    found = [
        (row["name"], [0.3] * 5, [bool(each) for each in after.get(row["name"], (1, 1, 0, 0, 0))]) for row in attacks
    ]
    rows = columns(RIGHT, *found, ("cw", [0.1, 0.2, 0.3, 0.4, 0.5], (False,) * 5)) | {"index": np.arange(5)}
    for row in attacks:
        rows[f"{row['name']}/linf"] = np.full(5, row["eps"], dtype=np.float32)
    rows["cw/linf"] = np.full(5, 0.2, dtype=np.float32)
    rows = {name: np.tile(column, count // 5) for name, column in rows.items()} | {"index": np.arange(count)}
    write(folder, [*attacks, minimal(passes=PASSES)], rows)
    result = json.loads((folder / "robustness.json").read_text())
    cases = [{"norm": "linf", "eps": eps, "accuracy": stated(after)} for eps, after in ((0.05, (1, 0)), (0.1, (0, 0)))]
    result |= {"worst_case": cases, "diagnostics": list(diagnostics), "versions": {"lightning-advdef": "9.9"}}
    result["fingerprint"] = {"model": {"network": {"class_path": "a.LeNet"}, "votes": 1}, "data": {"spec": "cifar10"}}
    (folder / "robustness.json").write_text(json.dumps(result))
    if config:
        (folder / "config.yaml").write_text(config)
    return folder


def with_pictures(folder):
    """The same folder with pictures of ``gray``, as many as an evaluation keeps."""
    gallery = Gallery([Scenario("gray", PGD(eps=0.1))], folder / "examples.npz")
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    gallery.kept["gray"] = Kept(torch.arange(8) % 5, torch.zeros(8), images, torch.zeros_like(images))
    gallery.save()
    return folder


def one(folder):
    (run,) = read_runs([folder])
    return run
