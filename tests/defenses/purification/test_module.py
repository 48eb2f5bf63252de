import functools

import pytest
import torch
from pytorch_lightning import Trainer
from torch.nn.functional import cross_entropy

from lightning_advdef.attacks import BPDA, PGD, FullGradient
from lightning_advdef.checkpoints import load_defense, save_defense
from lightning_advdef.defenses import PurificationModule, StandardModule
from lightning_advdef.defenses.purification import PurifierGradient
from lightning_advdef.models import MLP
from lightning_advdef.purifiers import JPEG, BitDepth, Chain, GaussianBlur
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


def module_of(purifier, kind=PurificationModule, **settings):
    torch.manual_seed(0)
    return kind(NETWORK, purifier, spec=SPEC, **settings).eval()


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


# attackers


def gradient_of(surrogate, images):
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(surrogate(leaf, SampleRNG.default(images)).sum(), leaf)[0]


def attacker_of(module):
    ((name, make),) = module.adaptive_surrogates().items()
    assert name == "purifier_gradient"
    return make(module)


def test_attackers_follow_the_gradient_of_a_purifier_that_has_one(images):
    module = module_of(GaussianBlur(1.0))
    torch.testing.assert_close(gradient_of(attacker_of(module), images), gradient_of(FullGradient(module), images))


def test_attackers_follow_the_stand_in_of_a_purifier_without_a_gradient(images):
    module = module_of(JPEG(20))
    expected = gradient_of(BPDA(module, stand_in=JPEG(20).stand_in()), images)
    torch.testing.assert_close(gradient_of(attacker_of(module), images), expected)


def test_attackers_take_a_purifier_without_both_for_the_identity(images):
    module = module_of(BitDepth(1))
    torch.testing.assert_close(gradient_of(attacker_of(module), images), gradient_of(BPDA(module), images))


def test_attackers_hear_what_the_deployed_defense_answers(images):
    module = module_of(Chain([Darker(0.5), BitDepth(2)]), votes=3)
    rng = SampleRNG.default(images)
    found = attacker_of(module)(images.clone().requires_grad_(), rng)
    assert torch.equal(found[0], module(images, rng.stream("defense")))


@torch.no_grad()
def test_one_part_without_a_gradient_hides_no_other_from_attackers(images):
    module = module_of(Chain([GaussianBlur(1.0), BitDepth(4)]))
    labels = module(images).argmax(dim=1)
    clean, identity, by_parts = (
        cross_entropy(module(found), labels)
        for found in (images, *(PGD(0.1, steps=10)(s, images, labels) for s in (BPDA(module), attacker_of(module))))
    )
    assert by_parts - clean > 1.3 * (identity - clean) > 0


def test_a_defense_without_a_purifier_has_no_gradient_of_one():
    with pytest.raises(ValueError, match="StandardModule has no Purifier"):
        PurifierGradient(StandardModule(NETWORK, spec=SPEC))
