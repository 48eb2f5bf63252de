"""Two processes train as one."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_advdef.attacks import FGSM
from tests.defenses.adversarial_training.helpers import quiet_trainer, toy
from tests.defenses.idfr.helpers import module_of

PARTS = {"denoise": "denoiser", "restore": "restorer"}


def begin(stage, **settings):
    """Before the training; every batch draws one of two attacks."""
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)  # Adam makes whole steps of gradients that rounding left
    module = module_of(stage=stage, attacks=[FGSM(0.1), FGSM(0.3)], optimizer=optimizer, **settings)
    for layer in module.denoiser.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()  # its statistics would see how a batch is divided
    return module


def train_together(folder, stage, weights, devices):
    """Weights of a part after two epochs of one batch of 8 images, on adversarial images of a shared folder."""
    module = begin(stage, weights=weights, cache=str(folder / "cache"))
    strategy = {"devices": 2, "strategy": "ddp"} if devices == 2 else {}
    quiet_trainer(folder, max_epochs=2, **strategy).fit(module, toy(count=8, batch_size=8))
    return {name: value.numpy() for name, value in getattr(module, PARTS[stage]).state_dict().items()}


@pytest.mark.parametrize(("stage", "earlier"), [("denoise", "target"), ("restore", "denoise")])
def test_two_processes_train_a_part_as_one(runs, tmp_path, ddp, stage, earlier):
    expected = train_together(tmp_path, stage, runs[earlier], devices=1)
    task = "tests.defenses.idfr.test_distributed:train_together"
    ranks = ddp(task, folder=tmp_path, stage=stage, weights=runs[earlier], devices=2)
    start = getattr(begin(stage), PARTS[stage]).state_dict()
    for name, value in expected.items():
        for rank in ranks:
            np.testing.assert_allclose(rank[name], value, rtol=1e-3, atol=1e-5)
    assert any(np.abs(expected[name] - start[name].numpy()).max() > 1e-4 for name in start if "weight" in name)
