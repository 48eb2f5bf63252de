"""Presets: what the paper writes, and what the authors' notebooks do."""

import functools

import pytest
import torch

from lightning_advdef.checkpoints import save_defense
from lightning_advdef.data import get_spec
from lightning_advdef.defenses.idfr.presets import preset_settings
from lightning_advdef.models import FeatureRestorer, InputDenoiser
from tests.defenses.idfr.helpers import batch_of, changed, loaded, module_of, state_of

NOTHING_GIVEN = {"denoiser": None, "restorer": None}


def made(preset, **settings):
    return module_of(stage="restore", preset=preset, **NOTHING_GIVEN | settings)


def test_without_a_preset_the_recommended_one_is_used():
    plainly, named = made("recommended"), module_of(stage="restore", **NOTHING_GIVEN)
    assert plainly.hparams.denoiser_loss == named.hparams.denoiser_loss == "ce"
    assert not changed(plainly, state_of(named))


def test_the_papers_correction_only_brightens_and_its_pairs_are_right_and_wrong():
    module, images = made("paper").eval(), batch_of().images
    module.denoiser.layer9[1].bias.data.normal_()
    assert (module.denoiser.residual(images) >= 0).all()
    assert module.hparams.pairing == "correct_wrong"
    assert module.hparams.denoiser_loss == "ce"


@pytest.mark.parametrize(("data", "denoiser", "restorer"), [("mnist", 694_209, 128), ("cifar10", 6_905_475, 256)])
def test_the_released_code_has_the_notebooks_networks_for_each_data_set(data, denoiser, restorer):
    settings = preset_settings("released_code", get_spec(data))
    with torch.device("meta"):
        network = settings["denoiser"](get_spec(data))
    assert sum(parameter.numel() for parameter in network.parameters()) == denoiser
    layers = settings["restorer"](512).down
    assert layers[0][0].out_features == restorer
    assert isinstance(layers[0][1], torch.nn.BatchNorm1d)


def test_the_released_code_fits_features_of_adversarial_images_alone():
    settings = made("released_code").hparams
    assert (settings.denoiser_loss, settings.noise_rounds, settings.pairing) == ("feature_l1", 0, "same_class")


def test_what_is_given_comes_before_the_preset():
    given = {"denoiser": functools.partial(InputDenoiser, width=2), "noise_rounds": 3}
    module = made("released_code", **given)
    assert isinstance(module.denoiser, InputDenoiser)
    assert isinstance(module.restorer, FeatureRestorer)
    assert (module.hparams.noise_rounds, module.hparams.denoiser_loss) == (3, "feature_l1")


def test_a_preset_survives_a_checkpoint(tmp_path):
    module, images = made("released_code"), batch_of().images
    save_defense(module, tmp_path / "whole.ckpt")
    torch.testing.assert_close(loaded(tmp_path / "whole.ckpt")(images), module.eval()(images))


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="preset must be recommended or paper or released_code, got 'best'"):
        made("best")
