"""The contract of a defense."""

import functools

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.defenses import DefenseModule, StandardModule
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.conftest import GOLDEN
from tests.toys import NoisyInput

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
NETWORK = functools.partial(MLP, hidden=[8])


def test_forward_is_the_classifier_after_the_purifier():
    defense = NoisyInput(NETWORK, spec="digits").eval()
    rng = SampleRNG.default(IMAGES)
    assert torch.equal(defense(IMAGES), defense.classifier(defense.purify(IMAGES, rng)))
    assert defense.undefended is defense.classifier


def test_the_standard_module_is_its_classifier():
    defense = StandardModule(NETWORK, spec="digits").eval()
    assert torch.equal(defense(IMAGES), defense.classifier(IMAGES))
    assert not defense.stochastic
    assert defense.adaptive_surrogates() == {}


def test_votes_are_the_log_of_the_mean_softmax_over_independent_draws():
    defense = NoisyInput(NETWORK, spec="digits", votes=3).eval()
    rng = SampleRNG.default(IMAGES)
    draws = [defense.classifier(defense.purify(IMAGES, rng.stream("vote", vote))) for vote in range(3)]
    mean = torch.stack([draw.softmax(dim=1) for draw in draws]).mean(dim=0)
    torch.testing.assert_close(defense(IMAGES, rng), mean.log())
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("votes", [1, 3])
def test_the_deployed_defense_runs_with_another_purifier(votes):
    defense = NoisyInput(NETWORK, spec="digits", votes=votes).eval()
    rng = SampleRNG.default(IMAGES)
    assert torch.equal(defense.deploy(IMAGES, rng, defense.purify), defense(IMAGES, rng))
    bare = defense.deploy(IMAGES, rng, lambda images, _: images)
    torch.testing.assert_close(bare.softmax(dim=1), defense.classifier(IMAGES).softmax(dim=1))


def test_an_answer_belongs_to_the_image():
    defense = NoisyInput(NETWORK, spec="digits", votes=2).eval()
    rng = SampleRNG.for_images(torch.arange(6))
    part = torch.tensor([4, 1])
    torch.testing.assert_close(defense(IMAGES[part], rng[part]), defense(IMAGES, rng)[part])


def test_the_loss_is_cross_entropy():
    defense = StandardModule(NETWORK, spec="digits")
    labels = torch.arange(6)
    batch = Batch(IMAGES, labels, torch.arange(6))
    expected = F.cross_entropy(defense.classifier(IMAGES), labels)
    assert torch.equal(defense.loss(batch, SampleRNG.default(IMAGES))["loss"], expected)


class Infinite(DefenseModule):
    def loss(self, batch, rng):
        penalty = torch.tensor(float("inf"))
        return {"loss": penalty, "penalty": penalty}


def test_an_infinite_term_stops_the_run_and_is_named():
    defense = Infinite(NETWORK, spec="digits")
    with pytest.raises(FloatingPointError, match="the penalty term became inf at step 0"):
        defense.training_step(Batch(IMAGES, torch.arange(6), torch.arange(6)), 0)


def test_no_votes_are_refused():
    with pytest.raises(ValueError, match=r"votes must be at least 1, got 0: change --model\.votes"):
        StandardModule(NETWORK, votes=0)


def test_a_defense_without_calibration_says_so():
    with pytest.raises(ValueError, match="StandardModule has nothing to calibrate"):
        StandardModule(NETWORK).calibrate(None)


def test_weights_are_loaded_in_setup():
    defense = StandardModule(
        functools.partial(MLP, hidden=[32]), spec="digits", weights=str(GOLDEN / "digits_mlp.safetensors")
    )
    before = defense.classifier.head.weight.clone()
    defense.setup("test")
    assert not torch.equal(defense.classifier.head.weight, before)


def test_hyperparameters_are_plain():
    defense = StandardModule(NETWORK, spec="digits", votes=2)
    assert defense.hparams["network"]["init_args"] == {"hidden": [8]}
    assert defense.hparams["votes"] == 2
    assert "optimizer" not in defense.hparams, "a lambda has no description"


def test_frozen_parameters_are_not_optimised():
    defense = StandardModule(NETWORK, spec="digits")
    defense.classifier.head.requires_grad_(False)
    optimised = {id(p) for group in defense.configure_optimizers().param_groups for p in group["params"]}
    assert optimised == {id(p) for p in defense.classifier.features.parameters()}


def test_a_test_after_a_fit_judges_what_was_trained(tmp_path):
    from pytorch_lightning import Trainer

    from lightning_advdef.data import Digits

    start = StandardModule(NETWORK, spec="digits")
    torch.save(start.state_dict(), tmp_path / "start.ckpt")
    module = StandardModule(NETWORK, spec="digits", weights=str(tmp_path / "start.ckpt"))
    data = Digits(limit=20, limit_train=64, limit_val=20)
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, barebones=False)
    trainer.fit(module, data)
    trained = {name: value.clone() for name, value in module.state_dict().items()}
    trainer.test(module, data)
    assert all(torch.equal(value, trained[name]) for name, value in module.state_dict().items())
    assert any(not torch.equal(value, trained[name]) for name, value in start.state_dict().items())


def test_random_numbers_of_torch_belong_to_the_step_whatever_was_drawn_before():
    defense = StandardModule(NETWORK, spec="digits")

    def drawn(step):
        defense.on_train_batch_start(Batch(IMAGES, torch.zeros(6), torch.arange(6)), step)
        return torch.rand(5)

    first, second = drawn(3), drawn(4)
    assert not torch.equal(first, second)
    assert torch.equal(drawn(3), first)
