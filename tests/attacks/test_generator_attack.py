"""The trained generator as an attack: what it returns, what it costs, and what belongs to its result."""

import functools
import os
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

from lightning_advdef.attacks import PGD, FullGradient, GeneratorAttack
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.attacks.generator_attack import class_gradient
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.data import get_spec
from lightning_advdef.defenses import GANAdvTrainModule, StandardModule
from lightning_advdef.errors import CheckpointError
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.models import MLP, PerturbationGenerator
from lightning_advdef.rng import SampleRNG

SPEC = get_spec("digits")
NETWORK = functools.partial(MLP, hidden=[8])
GENERATOR = functools.partial(PerturbationGenerator, width=4, hidden=8, reach=0.9)


def save(module, path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=True)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A generator, however bad, in a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("generator") / "model.ckpt"
    return save(GANAdvTrainModule(NETWORK, GENERATOR, spec="digits"), path), str(path)


@pytest.fixture
def images():
    return torch.rand(5, *SPEC.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(1)
    return NETWORK(SPEC)


LABELS = torch.tensor([3, 1, 4, 1, 5])


def probability_gradient(network, images, labels):
    images = images.clone().requires_grad_()
    probabilities = network(images).softmax(dim=1).gather(1, labels.unsqueeze(1)).sum()
    return torch.autograd.grad(probabilities, images)[0]


def test_class_gradient_is_that_of_the_softmax_output(network, images):
    found = class_gradient(FullGradient(network), images, Goal(LABELS), SampleRNG.default(images))
    torch.testing.assert_close(found, probability_gradient(network, images, LABELS))


def test_class_gradient_does_not_vanish_where_the_probability_rounds_to_one(network, images):
    labels = network(images).argmax(dim=1)
    gap = network(images).topk(2, dim=1).values.diff(dim=1).abs().max()
    network.head.weight.data *= 30 / gap
    network.head.bias.data *= 30 / gap
    assert (network(images).softmax(dim=1).amax(dim=1) == 1).any()
    found = class_gradient(FullGradient(network), images, Goal(labels), SampleRNG.default(images))
    exact = probability_gradient(network.double(), images.double(), labels)
    largest = exact.abs().amax(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(found.double() / largest, exact / largest, rtol=0, atol=1e-2)


def test_images_are_the_generators_for_the_attacked_network(trained, network, images):
    module, path = trained
    found = GeneratorAttack(path)(network, images, LABELS)
    expected = module.generator(images, LABELS, probability_gradient(network, images, LABELS)).detach()
    torch.testing.assert_close(found, expected)
    assert (lp_norm(found - images, "l2") > 0.01).all()


def test_images_do_not_depend_on_the_batch(trained, network, images):
    whole = GeneratorAttack(trained[1])(network, images, LABELS)
    parts = [GeneratorAttack(trained[1])(network, images[i : i + 1], LABELS[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_weights_and_mode_of_the_network_are_left_alone(trained, network, images):
    network.train()
    before = [parameter.clone() for parameter in network.parameters()]
    GeneratorAttack(trained[1])(network, images, LABELS)
    assert network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


def test_cost_is_one_gradient(trained, network, images):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(len(images), images.device)
    GeneratorAttack(trained[1])(surrogate, images, LABELS)
    assert passes.forward.tolist() == passes.backward.tolist() == [1] * 5
    assert GeneratorAttack(trained[1]).cost(10) == Cost(1, 1)


def test_works_in_inference_mode_and_from_a_first_call_in_it(trained, network, images, tmp_path):
    path = tmp_path / "copy.ckpt"
    path.write_bytes(Path(trained[1]).read_bytes())
    with torch.inference_mode():
        found = GeneratorAttack(str(path))(network, images, LABELS)
    torch.testing.assert_close(found, GeneratorAttack(trained[1])(network, images, LABELS))


def test_pgd_can_start_from_it(trained, network, images):
    attack = PGD(0.5, "l2", steps=3, start=GeneratorAttack(trained[1]))
    adversarial = attack(network, images, LABELS)
    assert (lp_norm(adversarial - images, "l2") <= 0.5 + 1e-4).all()


def test_a_new_file_under_the_same_name_is_read(trained, network, images, tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(Path(trained[1]).read_bytes())
    attack = GeneratorAttack(str(path))
    before = attack(network, images, LABELS)
    torch.manual_seed(5)
    save(GANAdvTrainModule(NETWORK, GENERATOR, spec="digits"), path)
    os.utime(path, ns=(1, 1))
    assert not torch.allclose(attack(network, images, LABELS), before)


def test_result_knows_the_weights_of_the_generator(trained, network):
    scenario = Scenario("generator", PGD(0.5, "l2", start=GeneratorAttack(trained[1])))
    assert list(scenario.describe(scenario.bind(network))["attack_files"]) == [trained[1]]


def test_a_checkpoint_without_generator_is_refused(network, images, tmp_path):
    save(StandardModule(NETWORK, spec="digits"), tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="holds no perturbation generator"):
        GeneratorAttack(str(tmp_path / "model.ckpt"))(network, images, LABELS)


def test_a_missing_checkpoint_is_refused(network, images, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        GeneratorAttack(str(tmp_path / "model.ckpt"))(network, images, LABELS)


def test_images_of_another_shape_are_refused(trained, images):
    wide = torch.rand(5, 1, 8, 12)
    network = NETWORK(SPEC._replace(width=12))
    with pytest.raises(ValueError, match="makes images of shape"):
        GeneratorAttack(trained[1])(network, wide, LABELS)
