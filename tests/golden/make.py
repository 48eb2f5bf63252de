"""Makes the golden files: ``python -m tests.golden.make``. Only needed when verdicts change on purpose."""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from lightning_advdef.data import Digits, get_spec
from lightning_advdef.models import MLP
from tests.conftest import GOLDEN, Command, result_of, scenario

LIMIT = 200
SCENARIOS = [
    scenario("fgsm_linf", "FGSM", eps=0.1),
    scenario("pgd20_linf", "PGD", eps=0.1, steps=20),
    scenario("pgd20_l2", "PGD", eps=0.5, norm="l2", steps=20),
    scenario("pgd5_gray", "PGD", surrogate="Undefended", eps=0.1, steps=5),
    scenario("deepfool", "DeepFool"),
]


def make_weights():
    """Trains a small network for a moment; the file is the truth from then on."""
    torch.manual_seed(0)
    data = Digits(batch_size=1438)
    data.setup("fit")
    images, labels, _ = next(iter(data.train_dataloader()))
    network = MLP(get_spec("digits"), hidden=[32])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    save_file(network.state_dict(), GOLDEN / "digits_mlp.safetensors")


def verdicts(runs):
    """Columns of the golden evaluation."""
    return result_of(Command(runs).digits("test", scenarios=SCENARIOS, limit=LIMIT))[1]


if __name__ == "__main__":
    if not (GOLDEN / "digits_mlp.safetensors").exists():
        make_weights()
    with tempfile.TemporaryDirectory() as folder:
        np.savez_compressed(GOLDEN / "verdicts.npz", **verdicts(Path(folder)))
