import functools

import pytest
import torch
from pytorch_lightning import Trainer

from lightning_advdef.attacks import BPDA, FullGradient
from lightning_advdef.checkpoints import load_defense, save_defense
from lightning_advdef.defenses import PurificationModule, StandardModule
from lightning_advdef.models import MLP
from lightning_advdef.purifiers import BitDepth, Chain
from lightning_advdef.rng import SampleRNG
from tests.purifiers.helpers import Darker
from tests.toys import Toy

SPEC = "1x8x8x10"
NETWORK = functools.partial(MLP, hidden=[8])


class OfMyOwn(PurificationModule):
    """Derived."""


@pytest.fixture
def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def module_of(purifier, kind=PurificationModule):
    torch.manual_seed(0)
    return kind(NETWORK, purifier, spec=SPEC).eval()


def test_the_classifier_sees_purified_images(images):
    module = module_of(BitDepth(1))
    assert torch.equal(module(images), module.classifier(images.round()))
    assert torch.equal(module.undefended(images), module.classifier(images))


def test_it_is_stochastic_if_its_purifier_is():
    assert module_of(Darker(0.1)).stochastic
    assert not module_of(Darker()).stochastic


@pytest.mark.parametrize("kind", [PurificationModule, OfMyOwn])
def test_a_fit_ends_before_any_data_is_read(tmp_path, kind):
    class NoData(Toy):
        def prepare_data(self):
            pytest.fail("data was read")

    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, max_epochs=1)
    with pytest.raises(ValueError, match=f"{kind.__name__} has nothing to train.*--model.weights"):
        trainer.fit(module_of(BitDepth(1), kind), NoData(SPEC))


def test_weights_of_a_standard_training_are_enough(tmp_path, images):
    torch.manual_seed(1)
    trained = StandardModule(NETWORK, spec=SPEC).eval()
    save_defense(trained, tmp_path / "model.ckpt")
    module = PurificationModule(NETWORK, BitDepth(8), spec=SPEC, weights=str(tmp_path / "model.ckpt")).eval()
    module.setup("test")
    assert torch.equal(module(images), trained((images * 255).round() / 255))


def test_a_checkpoint_brings_the_purifier_back(tmp_path, images):
    module = module_of(Chain([BitDepth(3), BitDepth(2)]))
    save_defense(module, tmp_path / "model.ckpt")
    loaded = load_defense(tmp_path / "model.ckpt")
    assert loaded.purifier == module.purifier
    assert torch.equal(loaded(images), module(images))


def gradient_of(surrogate, images):
    images = images.clone().requires_grad_()
    surrogate(images, SampleRNG.default(images)).sum().backward()
    return images.grad


def test_attackers_use_the_gradient_and_the_stand_in_of_the_purifier(images):
    module = module_of(Darker())
    found = {name: make(module) for name, make in module.adaptive_surrogates().items()}
    assert list(found) == ["stand_in", "full_gradient"]
    assert isinstance(found["stand_in"], BPDA)
    assert isinstance(found["full_gradient"], FullGradient)
    # the stand-in has slope 1 where the purifier has 1/2
    assert torch.allclose(gradient_of(found["stand_in"], images), 2 * gradient_of(found["full_gradient"], images))


def test_attackers_of_a_purifier_without_both_take_it_for_the_identity(images):
    module = module_of(BitDepth(1))
    surrogates = module.adaptive_surrogates()
    assert list(surrogates) == ["bpda"]
    assert gradient_of(surrogates["bpda"](module), images).abs().sum() > 0
