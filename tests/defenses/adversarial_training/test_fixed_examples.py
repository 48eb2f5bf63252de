import pytest
import torch

from lightning_advdef.attacks import FGSM, DeepFool, FullGradient
from lightning_advdef.defenses import AdversarialTrainingModule
from lightning_advdef.defenses.adversarial_training import fixed_examples
from lightning_advdef.rng import SampleRNG
from tests.defenses.adversarial_training.helpers import SmallNetwork, quiet_trainer, seeded_module, toy
from tests.toys import foreign_loader

ATTACK = DeepFool(steps=5)


def fixed_module(seed=0, attack=ATTACK, **settings):
    def make():
        return AdversarialTrainingModule(SmallNetwork, attack, fixed_examples=True, spec="digits", **settings)

    return seeded_module(make, seed)


@pytest.fixture
def making(monkeypatch):
    """Notes every making of a set."""
    made, make = [], fixed_examples._attacked
    monkeypatch.setattr(fixed_examples, "_attacked", lambda *arguments: made.append(1) or make(*arguments))
    return made


def test_every_image_has_the_adversarial_image_of_the_starting_weights(tmp_path):
    module = fixed_module()
    start = seeded_module(lambda: AdversarialTrainingModule(SmallNetwork, spec="digits")).classifier
    quiet_trainer(tmp_path, max_epochs=2).fit(module, toy())
    data = toy()
    data.setup("fit")
    images, labels, indices = data.train_dataloader().dataset.__getitems__([7, 2, 5])
    surrogate = FullGradient(start)
    surrogate.strongest = True
    expected = ATTACK(surrogate, images, labels, SampleRNG.for_images(indices, split="train"))
    torch.testing.assert_close(module._examples[indices], expected)
    assert not torch.equal(module._examples[indices], images)
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), module.classifier.parameters(), strict=True))


def test_a_resumed_training_reads_the_set_of_the_start(tmp_path, making):
    first = quiet_trainer(tmp_path)
    module = fixed_module()
    first.fit(module, toy())
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = fixed_module()
    quiet_trainer(tmp_path, max_epochs=2).fit(resumed, toy(), ckpt_path=tmp_path / "last.ckpt")
    assert making == [1]
    assert torch.equal(resumed._examples.images, module._examples.images)


@pytest.mark.parametrize("other", [{"seed": 1}, {"attack": FGSM(0.1)}])
def test_other_weights_or_another_attack_make_a_set_of_their_own(tmp_path, making, other):
    for settings in ({}, other):
        quiet_trainer(tmp_path).fit(fixed_module(**settings), toy())
    assert making == [1, 1]
    assert len(list(tmp_path.glob("fixed_examples_*.safetensors"))) == 2


def test_augmented_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the same in every epoch: .* with --data\.augment none"):
        quiet_trainer(tmp_path).fit(fixed_module(), toy(augment="flip"))


def test_a_loader_without_a_data_module_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use a data module of this package"):
        quiet_trainer(tmp_path).fit(fixed_module(), foreign_loader())
