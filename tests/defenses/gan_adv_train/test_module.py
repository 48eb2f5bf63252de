"""GANAdvTrainModule under a Trainer: steps of both players, averages, a frozen classifier, two processes."""

import copy
import functools

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging

from lightning_advdef.attacks import GeneratorAttack
from lightning_advdef.checkpoints import load_defense
from lightning_advdef.defenses import GANAdvTrainModule, StandardModule
from lightning_advdef.models import MLP, PerturbationGenerator
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.defenses.adversarial_training.helpers import quiet_trainer, seeded_module, toy

NETWORK = functools.partial(MLP, hidden=[16])
GENERATOR = functools.partial(PerturbationGenerator, width=4, hidden=8, reach=0.9)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def module_of(**settings):
    settings = {"spec": "digits", "penalty": 0.5, "optimizer": sgd} | settings
    return seeded_module(lambda: GANAdvTrainModule(NETWORK, GENERATOR, **settings))


def train(module, folder, data=None, **settings):
    trainer = quiet_trainer(folder, **settings)
    trainer.fit(module, data or toy(count=8, batch_size=8))
    return trainer


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def batch_of(count=8):
    data = toy(count=count, batch_size=count)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("flow", ["detach", "through"])
def test_both_players_step_at_once(tmp_path, flow):
    module = module_of(gradient_flow=flow)
    expected = copy.deepcopy(module)
    batch = batch_of()
    rng = SampleRNG.for_images(batch.indices, 0, "train", 0)
    expected.loss(batch, rng)["loss"].backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.05 * parameter.grad
    train(module, tmp_path)
    for one, other in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_each_player_has_an_optimizer_of_its_own():
    optimizers, schedulers = module_of(scheduler=halved).configure_optimizers()
    assert len(optimizers) == len(schedulers) == 2
    assert optimizers[0].param_groups[0]["params"] is not optimizers[1].param_groups[0]["params"]


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 3), ("step", 6)])
def test_schedulers_step_every_epoch_or_minibatch(tmp_path, interval, steps):
    module = module_of(scheduler=halved, scheduler_interval=interval)
    trainer = train(module, tmp_path, toy(count=16, batch_size=8), max_epochs=3)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [0.05 / 2**steps] * 2


def test_terms_are_logged(tmp_path):
    trainer = train(module_of(), tmp_path)
    logged = {name for name in trainer.callback_metrics if name.startswith("train/")}
    assert logged == {f"train/{term}" for term in ("loss", "classifier_loss", "generator_loss", "perturbation_l2")}


def generator_alone(penalty, steps=30):
    """Loss and size of the perturbations before and after the generator's training against a fixed classifier."""
    module = module_of(penalty=penalty)
    module.classifier.requires_grad_(False)
    optimizer = torch.optim.Adam(module.generator.parameters(), lr=1e-2)
    batch, found = batch_of(), []
    for _ in range(steps):
        terms = module.loss(batch, SampleRNG.for_images(batch.indices))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        found.append((terms["generator_loss"].item(), terms["perturbation_l2"].item()))
    return found


def test_generator_learns_and_moves_less_under_a_larger_penalty():
    light, heavy = generator_alone(0.5), generator_alone(50.0)
    assert light[-1][0] < light[0][0]
    assert heavy[-1][0] < heavy[0][0]
    assert heavy[-1][1] < 0.7 * light[-1][1]


def test_weights_are_averaged_once_a_step(tmp_path):
    module, seen = module_of(), []

    class Record(EMAWeightAveraging):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            seen.append(pl_module.generator.conv2.bias.detach().clone())

    train(module, tmp_path, toy(count=24, batch_size=8), callbacks=[Record(decay=0.5)])
    average = seen[0]
    for value in seen[1:]:
        average = 0.5 * average + 0.5 * value
    assert len(seen) == 3
    torch.testing.assert_close(module.generator.conv2.bias, average)


# a frozen classifier


@pytest.fixture
def classifier(tmp_path):
    module = seeded_module(lambda: StandardModule(NETWORK, spec="digits"), seed=3)
    trainer = train(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "classifier.ckpt", weights_only=True)
    return module, str(tmp_path / "classifier.ckpt")


@pytest.mark.parametrize("flow", ["detach", "through"])
def test_frozen_classifier_stays_as_it_was_while_the_generator_trains(tmp_path, classifier, flow):
    module = module_of(freeze_classifier=True, weights=classifier[1], gradient_flow=flow)
    before = weights_of(module)
    train(module, tmp_path)
    for name, value in weights_of(module).items():
        if name.startswith("classifier."):
            assert torch.equal(value, classifier[0].state_dict()[name])
        else:
            assert not torch.equal(value, before[name])


@pytest.mark.parametrize("width", [4, 6])
def test_generator_against_a_frozen_classifier_starts_anew(tmp_path, width):
    run = module_of()
    train(run, tmp_path).save_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    generator = functools.partial(GENERATOR, width=width)
    settings = {"freeze_classifier": True, "weights": str(tmp_path / "run.ckpt")}
    module = seeded_module(lambda: GANAdvTrainModule(NETWORK, generator, spec="digits", **settings), seed=5)
    before = weights_of(module)
    module.setup("fit")
    for name, value in weights_of(module).items():
        own = name.startswith("classifier.")
        assert torch.equal(value, (run.state_dict() if own else before)[name]), name


def test_test_of_a_frozen_classifier_loads_its_generator_as_well(tmp_path):
    run = module_of()
    train(run, tmp_path).save_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    module = module_of(freeze_classifier=True, weights=str(tmp_path / "run.ckpt"))
    module.setup("test")
    assert torch.equal(module.generator.conv2.bias, run.generator.conv2.bias)


def test_frozen_classifier_stays_in_eval_mode():
    module = module_of(freeze_classifier=True, weights="x")
    module.train()
    assert not module.classifier.training
    assert module.generator.training


def test_frozen_classifier_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--model\.weights"):
        train(module_of(freeze_classifier=True), tmp_path)


@pytest.mark.parametrize("settings", [{"penalty": -1.0}, {"adversarial_weight": 0.0}, {"adversarial_weight": 1.5}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="adversarial_weight in"):
        module_of(**settings)


# files


def test_checkpoint_gives_the_defense_and_the_attack_back(tmp_path):
    module = module_of(channels_last=True)
    train(module, tmp_path).save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    loaded = load_defense(tmp_path / "model.ckpt")
    images, labels, _ = batch_of()
    torch.testing.assert_close(loaded(images), module.eval()(images))
    adversarial = GeneratorAttack(str(tmp_path / "model.ckpt"))(module, images, labels)
    assert (adversarial - images).abs().amax() > 1e-3


def test_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    settings = {"optimizer": torch.optim.Adam, "scheduler": halved}
    whole = module_of(**settings)
    train(whole, tmp_path, max_epochs=2)
    first = module_of(**settings)
    train(first, tmp_path, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    second = module_of(**settings)
    quiet_trainer(tmp_path, max_epochs=2).fit(
        second, toy(count=8, batch_size=8), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


# two processes


def train_together(folder, flow, devices):
    """Weights and losses after two epochs of one batch of 8 images each."""
    module = module_of(gradient_flow=flow, adversarial_weight=0.7)
    strategy = {"devices": 2, "strategy": "ddp"} if devices == 2 else {}
    trainer = train(module, folder, max_epochs=2, **strategy)
    return {name: value.numpy() for name, value in module.state_dict().items()}, trainer.global_step


@pytest.mark.parametrize("flow", ["detach", "through"])
def test_two_processes_take_the_steps_of_one_on_the_joined_batch(tmp_path, ddp, flow):
    expected, steps = train_together(tmp_path, flow, devices=1)
    start = module_of().state_dict()
    task = "tests.defenses.gan_adv_train.test_module:train_together"
    ranks = ddp(task, folder=tmp_path, flow=flow, devices=2)
    for weights, own_steps in ranks:
        assert own_steps == steps
        for name, value in expected.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-4, atol=1e-6)
    for name, value in ranks[0][0].items():
        assert np.array_equal(value, ranks[1][0][name]), "ranks hold equal weights"
        assert np.abs(value - start[name].numpy()).max() > 1e-4


def test_the_averaged_gradient_is_that_of_the_joined_batch():
    batch = batch_of()
    gradients = []
    for rows in (slice(0, 8), slice(0, 4), slice(4, 8)):
        module = module_of(gradient_flow="through")
        part = Batch(*(tensor[rows] for tensor in batch))
        module.loss(part, SampleRNG.for_images(part.indices))["loss"].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]))
    torch.testing.assert_close((gradients[1] + gradients[2]) / 2, gradients[0], rtol=1e-4, atol=1e-6)
