"""Two processes train as one."""

import numpy as np

from tests.defenses.adversarial_training.helpers import quiet_trainer, toy
from tests.defenses.idfr.helpers import module_of


def train_together(folder, weights, devices):
    """Weights of a restorer after two epochs of one batch of 8 images, on adversarial images of a shared folder."""
    module = module_of(stage="restore", weights=weights, cache=str(folder / "cache"))
    strategy = {"devices": 2, "strategy": "ddp"} if devices == 2 else {}
    quiet_trainer(folder, max_epochs=2, **strategy).fit(module, toy(count=8, batch_size=8))
    return {name: value.numpy() for name, value in module.restorer.state_dict().items()}


def test_two_processes_restore_as_one(runs, tmp_path, ddp):
    expected = train_together(tmp_path / "one", runs["denoise"], devices=1)
    task = "tests.defenses.idfr.test_distributed:train_together"
    ranks = ddp(task, folder=tmp_path / "two", weights=runs["denoise"], devices=2)
    start = module_of(stage="restore").restorer.state_dict()
    for name, value in expected.items():
        for rank in ranks:
            np.testing.assert_allclose(rank[name], value, rtol=1e-3, atol=1e-5)
    assert all(np.abs(expected[name] - start[name].numpy()).max() > 1e-4 for name in start if "weight" in name)
