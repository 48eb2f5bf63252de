"""The LightningModule of Deep Defense."""

import functools

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import PGD
from lightning_advdef.data import Digits
from lightning_advdef.defenses import DeepDefenseModule
from lightning_advdef.defenses.deep_defense.regularizer import deep_defense_regularizer
from lightning_advdef.models import MLP, NIN
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.defenses.deep_defense.naive_deepfool import naive_perturbation

NETWORK = functools.partial(MLP, hidden=[16])


@pytest.fixture
def batch():
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(8) % 10, torch.arange(8))


def loss_of(module, batch):
    return module.loss(batch, SampleRNG.for_images(batch.indices))


def test_loss_is_cross_entropy_plus_weight_times_the_naive_regularizer(batch):
    module = DeepDefenseModule(NETWORK, spec="digits", weight=3.0, c=2.0, d=1.0)
    terms = loss_of(module, batch)
    perturbation = naive_perturbation(module.classifier, batch.images, batch.labels, 5)
    correct = module.classifier(batch.images).argmax(dim=1) == batch.labels
    expected = deep_defense_regularizer(perturbation, batch.images, correct, 2.0, 1.0)
    cross_entropy = F.cross_entropy(module.classifier(batch.images), batch.labels)
    torch.testing.assert_close(terms["loss"], cross_entropy + 3 * expected)


def test_defaults_are_those_of_the_paper():
    module = DeepDefenseModule(NETWORK, spec="digits")
    assert (module.weight, module.c, module.d, module.steps, module.norm) == (15, 25, 5, 5, "l2")
    settings = module.configure_optimizers().defaults
    assert (settings["lr"], settings["momentum"], settings["weight_decay"]) == (5e-4, 0.9, 5e-4)


def test_unknown_layer_is_refused_at_once_with_the_list():
    with pytest.raises(ValueError, match=r"layer must be one of .*head"):
        DeepDefenseModule(NETWORK, spec="digits", layer="nonsense")


def test_adversarial_images_are_mixed_in(batch):
    module = DeepDefenseModule(NETWORK, spec="digits", adversarial=PGD(0.1, steps=2), clean_share=0.0)
    plain = DeepDefenseModule(NETWORK, spec="digits")
    plain.load_state_dict(module.state_dict())
    assert loss_of(module, batch)["cross_entropy"] > loss_of(plain, batch)["cross_entropy"]


def test_batch_norm_statistics_stay_and_dropout_networks_train(batch):
    module = DeepDefenseModule(functools.partial(MLP, hidden=[16], batch_norm=True), spec="digits").train()
    before = {name: value.clone() for name, value in module.named_buffers()}
    loss_of(module, batch)["loss"].backward()
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
    nin = DeepDefenseModule(NIN, spec="3x8x8x10", steps=1).train()
    loss = loss_of(nin, Batch(batch.images.expand(-1, 3, -1, -1), batch.labels, batch.indices))["loss"]
    loss.backward()
    assert loss.isfinite()


def test_calibrate_finds_the_size_that_leaves_half_of_the_images(monkeypatch):
    module = DeepDefenseModule(NETWORK, spec="digits")
    data = Digits(limit=100)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    data.setup("fit")
    for images, labels, _ in 5 * list(data.train_dataloader()):
        optimizer.zero_grad()
        F.cross_entropy(module.classifier(images), labels).backward()
        optimizer.step()
    modes = [child.training for child in module.modules()]
    eps = module.calibrate(data)["eps_ref"]
    assert 0.001 < eps < 0.5
    assert [child.training for child in module.modules()] == modes
