"""Two processes find what one finds in the validation split."""

import numpy as np
import torch

from tests.defenses.adversarial_training.helpers import quiet_trainer
from tests.defenses.feature_smoothing.helpers import SPEC, module_of
from tests.toys import Toy


def calibrated(folder, devices):
    """What validation leaves in the buffers."""
    module = module_of(delta=None)
    strategy = {"devices": 2, "strategy": "ddp"} if devices == 2 else {}
    data = Toy(toy_spec=SPEC, count=28, val_fraction=0.5, batch_size=4)
    quiet_trainer(folder, limit_val_batches=1.0, **strategy).validate(module, data, verbose=False)
    return {name: getattr(module, f"calibrated_{name}").numpy() for name in ("delta", "anchors")}


def test_two_processes_calibrate_as_one(tmp_path, ddp):
    expected = calibrated(tmp_path, devices=1)
    task = "tests.defenses.feature_smoothing.test_distributed:calibrated"
    for found in ddp(task, folder=tmp_path, devices=2):
        np.testing.assert_allclose(found["delta"], expected["delta"], rtol=1e-6)
        np.testing.assert_array_equal(found["anchors"], expected["anchors"])
    assert np.isfinite(expected["anchors"]).all()


def test_the_anchor_of_a_class_is_its_first_image_whatever_the_batches():
    found = []
    for size in (3, 14):
        module = module_of(delta=None)
        module.calibrate(Toy(toy_spec=SPEC, count=28, val_fraction=0.5, batch_size=size))
        found.append(module.calibrated_anchors)
    assert torch.equal(*found)
