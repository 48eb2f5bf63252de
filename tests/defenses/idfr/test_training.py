"""Both trainings: what changes, what stays, and how they go on."""

import pytest
import torch

from lightning_advdef.attacks import FGSM
from lightning_advdef.errors import CheckpointError
from tests.defenses.adversarial_training.helpers import quiet_trainer, toy
from tests.defenses.idfr.helpers import batch_of, begun, changed, loaded, module_of, rng_of, state_of

FRESH = pytest.mark.filterwarnings("ignore:the target stays")


@pytest.mark.parametrize(("stage", "start"), [("denoise", "target"), ("restore", "denoise")])
def test_only_the_part_in_training_changes(runs, tmp_path, stage, start):
    module = module_of(stage=stage, weights=runs[start])
    module.setup("fit")
    before = state_of(module)
    quiet_trainer(tmp_path, max_epochs=2).fit(module, toy())
    assert changed(module, before) == {"denoiser" if stage == "denoise" else "restorer"}


def test_target_is_that_of_the_earlier_training_to_the_bit(runs):
    states = {name: loaded(path).classifier.state_dict() for name, path in runs.items()}
    for name, value in states["target"].items():
        assert torch.equal(states["denoise"][name], value)
        assert torch.equal(states["restore"][name], value)


@pytest.mark.parametrize("stage", ["denoise", "restore"])
def test_frozen_parts_stay_in_eval_mode(stage):
    module = module_of(stage=stage).train()
    assert not any(layer.training for layer in module.classifier.modules())
    assert all(layer.training == (stage == "denoise") for layer in module.denoiser.modules())
    assert stage == "denoise" or all(layer.training for layer in module.restorer.modules())


def fitted(folder, stage, weights, steps=40):
    """Training loss at the start and at the end."""
    module = module_of(stage=stage, weights=weights, noise_rounds=1)
    begun(module, folder, count=40).train()
    optimizer, batch, found = adam_of(module), batch_of(), []
    for _ in range(steps):
        loss = module.loss(batch, rng_of(batch))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found[0], found[-1]


def adam_of(module):
    return torch.optim.Adam([each for each in module.parameters() if each.requires_grad], lr=1e-2)


@pytest.mark.parametrize(("stage", "start"), [("denoise", "target"), ("restore", "denoise")])
def test_loss_falls(runs, tmp_path, stage, start):
    first, last = fitted(tmp_path, stage, runs[start])
    assert last < 0.8 * first


@FRESH
@pytest.mark.parametrize("stage", ["denoise", "restore"])
def test_interrupted_training_goes_on_as_if_it_had_not_been(runs, tmp_path, stage):
    settings = {"stage": stage, "weights": runs["denoise"], "attacks": [FGSM(0.1), FGSM(0.2)]}
    whole = module_of(**settings)
    quiet_trainer(tmp_path, max_epochs=2).fit(whole, toy())
    first = quiet_trainer(tmp_path)
    first.fit(module_of(**settings), toy())
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = module_of(**settings)
    quiet_trainer(tmp_path, max_epochs=2).fit(second, toy(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert not changed(second, state_of(whole))


def test_untrained_target_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="the target stays as its network starts"):
        quiet_trainer(tmp_path, max_epochs=0).fit(module_of(), toy())


def test_fit_with_some_of_the_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="parts: denoiser is for tests"):
        quiet_trainer(tmp_path).fit(module_of(parts="denoiser"), toy())


def test_restoring_without_a_trained_denoiser_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="stage: restore needs a trained denoiser"):
        quiet_trainer(tmp_path).fit(module_of(stage="restore"), toy())
    with pytest.raises(CheckpointError, match="holds no denoiser"):
        quiet_trainer(tmp_path).fit(module_of(stage="restore", weights=runs["target"]), toy())
