"""Draws the figure of README and RESULTS from result folders: python docs/make_figures.py runs/a runs/b -o FILE."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from lightning_advdef.metrics import accuracy_norm_curve


def main() -> None:
    """Reads ``margin_boundary_l2`` of each folder and draws accuracy against the l2 norm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", help="result folders, as LABEL=FOLDER")
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for item in arguments.folders:
        label, _, folder = item.partition("=")
        with np.load(Path(folder) / "robustness.npz") as rows:
            right = rows["clean/prediction"] == rows["label"]
            broken = ~right | (rows["margin_boundary_l2/prediction"] != rows["label"])
            norms = np.where(right, rows["margin_boundary_l2/l2"], 0.0)
        radii, accuracy = accuracy_norm_curve(torch.from_numpy(norms), torch.from_numpy(broken))
        axis.step(radii, accuracy, where="post", label=label)
    axis.set(xlabel="l2 norm of the smallest perturbation that PGD finds (pixels in [0, 1])", ylabel="accuracy")
    axis.set(xlim=(0, None), ylim=(0, 1))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(arguments.output, dpi=130)


if __name__ == "__main__":
    main()
