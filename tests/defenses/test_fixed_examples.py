import os
import time

import numpy as np
import pytest
import torch

from lightning_advdef import waiting
from lightning_advdef.attacks import FGSM, DeepFool, FullGradient, Transfer
from lightning_advdef.data import get_spec
from lightning_advdef.defenses import AdversarialTrainingModule, fixed_examples
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch
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
    made, make = [], fixed_examples._make
    monkeypatch.setattr(fixed_examples, "_make", lambda *arguments: made.append(1) or make(*arguments))
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


def test_a_set_that_other_code_made_is_made_anew(tmp_path, making, monkeypatch):
    for code in ("before", "after", "after"):
        monkeypatch.setattr(fixed_examples, "code_hash", lambda *items, code=code: code)
        quiet_trainer(tmp_path).fit(fixed_module(), toy())
    assert making == [1, 1]


def test_an_interrupted_making_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(fixed_examples, "_ATTACKED_AT_ONCE", 4)
    whole = fixed_module()
    quiet_trainer(tmp_path / "whole").fit(whole, toy())
    lots, attack = [], fixed_examples.attacked

    def interrupted(surrogate, attack_, batch, *arguments):
        lots.append(batch.indices.tolist())
        if len(lots) == 2:
            raise KeyboardInterrupt
        return attack(surrogate, attack_, batch, *arguments)

    monkeypatch.setattr(fixed_examples, "attacked", interrupted)
    trainer = quiet_trainer(tmp_path / "parts")
    trainer.datamodule = toy()
    trainer.datamodule.setup("fit")
    arguments = (trainer, FullGradient(fixed_module().classifier), ATTACK, 0)
    with pytest.raises(KeyboardInterrupt):
        fixed_examples.load_or_make(*arguments)
    found = fixed_examples.load_or_make(*arguments)
    assert lots == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8, 9]], "what was there is not made again"
    assert torch.equal(found.images, whole._examples.images)
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".safetensors"]


def test_images_of_another_network_do_not_depend_on_the_target(tmp_path, making):
    quiet_trainer(tmp_path).fit(fixed_module(seed=3), toy())
    trainer = quiet_trainer(tmp_path)
    trainer.datamodule = toy()
    trainer.datamodule.setup("fit")
    other = seeded_module(lambda: SmallNetwork(get_spec("digits")), 7)
    for seed in (0, 1):
        surrogate = Transfer(fixed_module(seed=seed).classifier, network=lambda spec: other)
        found = fixed_examples.load_or_make(trainer, surrogate, ATTACK, 0)
    assert making == [1, 1], "one for the first fit, one for both targets"
    assert found.images.shape == (10, 1, 8, 8)


def made_by_the_first(folder, fails):
    """What a process has in the end; the first one attacks only once the other has looked in vain for the file."""
    looked, attack = folder / "looked", fixed_examples.attacked

    def attacked(*arguments):
        deadline = time.monotonic() + 60
        while not looked.exists():
            assert time.monotonic() < deadline, "nobody looks for the file"
        if fails:
            raise FloatingPointError
        return attack(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed_examples, "attacked", attacked)
        patch.setattr(waiting.time, "sleep", lambda _: looked.touch())
        module = fixed_module(seed=int(os.environ["RANK"]))  # weights that DDP makes the same later
        try:
            quiet_trainer(folder, devices=2, strategy="ddp").fit(module, toy(count=8, batch_size=8))
        except (FloatingPointError, RuntimeError) as error:
            return repr(error)
        return module._examples.images.numpy()


def test_other_processes_look_for_the_file_meanwhile(tmp_path, ddp):
    one, two = ddp("tests.defenses.test_fixed_examples:made_by_the_first", folder=tmp_path, fails=False)
    assert np.array_equal(one, two)


def test_other_processes_notice_that_the_first_failed(tmp_path, ddp):
    one, two = ddp("tests.defenses.test_fixed_examples:made_by_the_first", folder=tmp_path, fails=True)
    assert one == "FloatingPointError()"
    assert "another process failed" in two


def test_an_attack_on_the_prediction_does_not_see_the_labels():
    network = seeded_module(lambda: SmallNetwork(get_spec("digits")))
    batch = Batch(torch.rand(6, 1, 8, 8), torch.arange(6), torch.arange(6))
    other = batch._replace(labels=(batch.labels + 1) % 10)
    rng = SampleRNG.default(batch.images)
    one, two = (
        fixed_examples.attacked(FullGradient(network), FGSM(0.1), each, rng, "prediction") for each in (batch, other)
    )
    assert torch.equal(one, two)
    predicted = batch._replace(labels=network.eval()(batch.images).argmax(dim=1))
    assert torch.equal(one, fixed_examples.attacked(FullGradient(network), FGSM(0.1), predicted, rng))


def test_augmented_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the same in every epoch: .* with --data\.augment none"):
        quiet_trainer(tmp_path).fit(fixed_module(), toy(augment="flip"))


def test_a_loader_without_a_data_module_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use a data module of this package"):
        quiet_trainer(tmp_path).fit(fixed_module(), foreign_loader())
