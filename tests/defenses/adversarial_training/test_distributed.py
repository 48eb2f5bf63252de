"""Two processes take the step of one process on the joined batch."""

import functools

import numpy as np
import pytest
import torch

from lightning_advdef.attacks import FGSM, PGD, Noise
from lightning_advdef.data import get_spec
from lightning_advdef.defenses import AdversarialTrainingModule
from lightning_advdef.defenses.adversarial_training import TRADES
from lightning_advdef.models import MLP
from tests.defenses.adversarial_training.helpers import quiet_trainer, seeded_module, toy

# l2 from far away: rounding decides the sign of a small gradient, and the direction of that beside the image
KL = PGD(0.5, "l2", steps=2, loss="kl_divergence", start=Noise(0.5, "l2", "gaussian"))
NETWORK = functools.partial(MLP, hidden=[16])
METHODS = {
    "trades_awp": {"attack": KL, "objective": TRADES(), "weight_perturbation": 0.05},
    "free": {"attack": FGSM(0.1), "replays": 2},
    "fixed": {"attack": FGSM(0.1), "fixed_examples": True},
}


def train(method, folder, devices):
    """Weights after two epochs of one batch of 8 images each."""

    def make():
        optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731
        return AdversarialTrainingModule(NETWORK, spec="digits", optimizer=optimizer, **METHODS[method])

    module = seeded_module(make)
    strategy = {"devices": 2, "strategy": "ddp"} if devices == 2 else {}
    trainer = quiet_trainer(folder, max_epochs=2, **strategy)
    trainer.fit(module, toy(count=8, batch_size=8))
    trainer.save_checkpoint(f"{folder}/{devices}.ckpt")
    return {name: value.numpy() for name, value in module.classifier.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one(tmp_path, ddp, method):
    expected = train(method, tmp_path, devices=1)
    task = "tests.defenses.adversarial_training.test_distributed:train"
    start = seeded_module(lambda: NETWORK(get_spec("digits"))).state_dict()
    for weights in ddp(task, method=method, folder=tmp_path, devices=2):
        for name, value in expected.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-4, atol=1e-6)
            assert np.abs(value - start[name].numpy()).max() > 1e-3


def test_the_carried_perturbation_of_all_processes_is_kept(tmp_path, ddp):
    train("free", tmp_path, devices=1)
    ddp("tests.defenses.adversarial_training.test_distributed:train", method="free", folder=tmp_path, devices=2)
    one, two = (torch.load(tmp_path / f"{n}.ckpt", weights_only=True)["carried_perturbation"] for n in (1, 2))
    assert one.shape == two.shape == (8, 1, 8, 8)
