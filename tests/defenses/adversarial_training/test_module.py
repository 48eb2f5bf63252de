import functools

import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import FGSM, PGD, AutoAttack, RandomStartFGSM
from lightning_advdef.checkpoints import load_defense
from lightning_advdef.defenses import AdversarialTrainingModule
from lightning_advdef.defenses.adversarial_training import MART, TRADES, CrossEntropy
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
from tests.defenses.adversarial_training.helpers import SmallNetwork, quiet_trainer, seeded_module, toy

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
BATCH = Batch(IMAGES, torch.arange(6), torch.arange(6))
RNG = SampleRNG.for_images(BATCH.indices)
ATTACK = FGSM(0.1)


def module_of(*arguments, **settings):
    return seeded_module(lambda: AdversarialTrainingModule(SmallNetwork, *arguments, spec="digits", **settings)).train()


def test_an_attack_made_of_parts_is_refused():
    with pytest.raises(ValueError, match="adversarial training cannot use AutoAttack, which is made of parts"):
        AdversarialTrainingModule(functools.partial(MLP, hidden=[4]), AutoAttack(0.1), spec="digits")


@pytest.mark.parametrize(
    "settings",
    [
        {"attack_mode": "test"},
        {"weight_perturbation": -0.1},
        {"replays": 0, "attack": ATTACK},
        {"replays": 2, "attack": PGD(0.1)},
        {"replays": 2, "attack": RandomStartFGSM(0.1)},
        {"replays": 2, "attack": ATTACK, "fixed_examples": True},
    ],
)
def test_settings_that_do_not_fit_are_refused(settings):
    with pytest.raises(ValueError, match=r"attack_mode eval or train|replays must be at least 1 and go with FGSM"):
        module_of(**settings)


def test_madry_is_the_cross_entropy_of_the_adversarial_images_in_train_mode():
    module = module_of(ATTACK)
    adversarial = ATTACK(module.classifier, IMAGES, BATCH.labels, RNG)
    loss = module.loss(BATCH, RNG)["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(module.classifier(adversarial), BATCH.labels))


@pytest.mark.parametrize("objective", [CrossEntropy(0.5), TRADES(), MART()])
def test_clean_and_adversarial_images_share_one_pass(objective):
    module, seen = module_of(ATTACK, objective), []
    adversarial = ATTACK(module.classifier, IMAGES, BATCH.labels, RNG)
    hook = lambda network, arguments: seen.append(len(arguments[0])) if network.training else None  # noqa: E731
    module.classifier.register_forward_pre_hook(hook)
    loss = module.loss(BATCH, RNG)["loss"]
    assert seen == [12]
    clean, attacked = module.classifier(torch.cat([IMAGES, adversarial])).chunk(2)
    torch.testing.assert_close(loss, objective(clean, attacked, BATCH.labels))


def test_without_a_weight_clean_images_cost_no_pass():
    module, seen = module_of(ATTACK), []
    hook = lambda network, arguments: seen.append(len(arguments[0])) if network.training else None  # noqa: E731
    module.classifier.register_forward_pre_hook(hook)
    module.loss(BATCH, RNG)
    assert seen == [6]


def test_weights_are_perturbed_on_the_objective_from_the_given_epoch_on():
    settings = {"objective": TRADES(), "attack": ATTACK}
    plain = module_of(**settings).loss(BATCH, RNG)["loss"]
    perturbed = module_of(**settings, weight_perturbation=0.05).loss(BATCH, RNG)["loss"]
    later = module_of(**settings, weight_perturbation=0.05, weight_perturbation_from=1).loss(BATCH, RNG)["loss"]
    assert perturbed > plain + 0.01
    assert torch.equal(later, plain)


# the mode of the attack


def linear_batch_gradient(module):
    """Sign of the gradient of the loss with batch norm in train mode."""
    leaf = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(module.classifier(leaf), BATCH.labels, reduction="sum"), leaf)
    return (IMAGES + 0.1 * gradient.sign()).clamp(0, 1)


def test_in_train_mode_the_attack_sees_the_statistics_of_the_batch():
    module = module_of(ATTACK, attack_mode="train")
    with torch.no_grad():
        module.classifier.features[1].running_var.fill_(50.0)
    expected = linear_batch_gradient(module)
    torch.testing.assert_close(module._adversarial(BATCH, RNG), expected)
    other = module_of(ATTACK)
    assert not torch.equal(other._adversarial(BATCH, RNG), expected)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_attack_leaves_running_statistics_and_modes_alone(mode):
    module = module_of(PGD(0.1, steps=2), attack_mode=mode)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module._adversarial(BATCH, RNG)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(child.training for child in module.classifier.modules())
    assert module.classifier.features[1].track_running_stats
    module.loss(BATCH, RNG)
    assert module.classifier.features[1].num_batches_tracked == 1


def test_frozen_batch_norm_stays_frozen_in_train_mode():
    module = module_of(ATTACK, attack_mode="train")
    module.classifier.features[1].eval()
    adversarial = module._adversarial(BATCH, RNG)
    assert not module.classifier.features[1].training
    assert torch.equal(adversarial, ATTACK(module.classifier, IMAGES, BATCH.labels, RNG))


# settings in files


def test_settings_survive_a_checkpoint(tmp_path):
    settings = {"attack_mode": "train", "weight_perturbation": 0.005, "weight_perturbation_from": 3}
    network = functools.partial(MLP, hidden=[4])
    module = AdversarialTrainingModule(network, ATTACK, TRADES(2.0), spec="digits", **settings)
    trainer = quiet_trainer(tmp_path, fast_dev_run=True)
    trainer.fit(module, toy())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_defense(tmp_path / "a.ckpt")
    assert (loaded.attack, loaded.objective) == (ATTACK, TRADES(2.0))
    assert {name: getattr(loaded, name) for name in settings} == settings


def test_the_scheduler_may_count_minibatches(tmp_path):
    module = AdversarialTrainingModule(
        SmallNetwork,
        ATTACK,
        spec="digits",
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        scheduler_interval="step",
    )
    trainer = quiet_trainer(tmp_path)
    trainer.fit(module, toy())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5**3


def test_objective_is_the_cross_entropy_unless_given():
    assert module_of(ATTACK).objective == CrossEntropy()
    assert module_of(ATTACK, objective=None).objective == CrossEntropy()
