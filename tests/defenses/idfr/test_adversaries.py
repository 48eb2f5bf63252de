"""Adversarial training images: drawn attacks and budgets, and sets that are kept."""

import functools

import pytest
import torch

from lightning_advdef.attacks import FGSM, FullGradient, Transfer
from lightning_advdef.defenses import fixed_examples
from lightning_advdef.rng import SampleRNG
from tests.defenses.adversarial_training.helpers import quiet_trainer, toy
from tests.defenses.idfr.helpers import (
    adversaries_of,
    batch_of,
    changed,
    loaded,
    module_of,
    rng_of,
    saved,
    state_of,
    target_of,
)

FRESH = pytest.mark.filterwarnings("ignore:the target stays")


class Recorded(FullGradient):
    """Notes how often it is asked."""

    asked = 0

    def logits(self, images, rng):
        Recorded.asked += 1
        return super().logits(images, rng)


def drawn(module, count=60):
    """Adversarial images of many batches of the same images."""
    batch = batch_of()
    rngs = [SampleRNG.for_images(batch.indices, epoch=epoch) for epoch in range(count)]
    numbers = [SampleRNG.for_images(torch.tensor([number])) for number in range(count)]
    adversaries = adversaries_of(module)
    return batch, [adversaries.draw(batch, *pair) for pair in zip(rngs, numbers, strict=True)]


def test_every_batch_draws_one_attack_for_all_of_its_images():
    module = module_of(attacks=[FGSM(0.1), FGSM(0.2)])
    batch, found = drawn(module)
    sizes = [(images - batch.images).abs().flatten(1).amax(dim=1) for images in found]
    assert all(size.max() - size.min() < 1e-3 for size in sizes)
    assert {round(float(size.max()), 3) for size in sizes} == {0.1, 0.2}


def test_budgets_are_drawn_up_to_the_largest():
    batch, found = drawn(module_of(largest_eps=0.3))
    sizes = torch.tensor([(images - batch.images).abs().max() for images in found]).sort().values
    assert sizes[-1] <= 0.3 + 1e-6
    assert (sizes - torch.linspace(0, 0.3, len(sizes))).abs().max() < 0.06


@pytest.mark.parametrize("settings", [{"attacks": [FGSM(0.1), FGSM(0.2)]}, {"largest_eps": 0.3}])
def test_parts_of_a_batch_draw_as_the_whole(settings):
    module, batch = module_of(**settings), batch_of()
    adversaries, rng, found = adversaries_of(module), rng_of(batch), []
    for number in range(12):
        module.on_train_batch_start(batch, number)
        whole = adversaries.draw(batch, rng, module._batch_rng())
        for half in (slice(0, 3), slice(3, 6)):
            part = type(batch)(*(values[half] for values in batch))
            torch.testing.assert_close(adversaries.draw(part, rng[half], module._batch_rng()), whole[half])
        found.append(round(float((whole - batch.images).abs().max()), 3))
    assert len(set(found)) > 1


def test_attacks_on_another_network_do_not_ask_the_target(runs):
    source = functools.partial(Transfer, network=lambda spec: loaded(runs["target"]).classifier)
    _, (found,) = drawn(module_of(seed=1, source=source), count=1)
    assert torch.equal(found, drawn(module_of(seed=2, source=source), count=1)[1][0])
    assert not torch.equal(found, drawn(module_of(seed=1), count=1)[1][0])


@FRESH
def test_cached_images_are_made_once_for_both_trainings(runs, tmp_path):
    Recorded.asked = 0
    settings = {"source": Recorded, "cache": str(tmp_path / "cache"), "attacks": [FGSM(0.1), FGSM(0.2)]}
    saved(module_of(weights=runs["target"], **settings), tmp_path / "denoise.ckpt", max_epochs=2)
    asked = Recorded.asked
    assert asked == 4, "for each attack the prediction and a gradient of all images at once"
    module = module_of(stage="restore", weights=str(tmp_path / "denoise.ckpt"), **settings)
    saved(module, tmp_path / "restore.ckpt")
    assert Recorded.asked == asked
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("other", [{"attacks": [FGSM(0.2)]}, {"leaves": "label"}, {"weights": "other"}])
def test_cached_images_of_another_recipe_are_made_anew(runs, tmp_path, other):
    settings = {"cache": str(tmp_path / "cache"), "weights": runs["target"]}
    if "weights" in other:
        other = {"weights": target_of(tmp_path, seed=4)}
    for changes in ({}, other, {}):
        quiet_trainer(tmp_path).fit(module_of(**settings | changes), toy())
    assert len(list((tmp_path / "cache").glob("fixed_examples_*.safetensors"))) == 2


def test_training_on_cached_images_is_the_same_whether_they_were_there(runs, tmp_path):
    settings = {"cache": str(tmp_path / "cache"), "weights": runs["target"]}
    first, second = module_of(**settings), module_of(**settings)
    for module in (first, second):
        quiet_trainer(tmp_path).fit(module, toy())
    assert not changed(second, state_of(first))


def test_a_second_fit_caches_images_of_its_own_data(runs, tmp_path):
    module = module_of(weights=runs["target"], cache=str(tmp_path / "cache"))
    for count in (10, 20):
        quiet_trainer(tmp_path).fit(module, toy(count=count))
        assert len(module.part_training.adversaries.sets[0].images) == count


def test_caching_goes_on_after_an_interruption(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(fixed_examples, "_ATTACKED_AT_ONCE", 4)
    settings = {"cache": str(tmp_path / "cache"), "weights": runs["target"]}
    made, make = [], fixed_examples.attacked

    def interrupted(surrogate, attack, batch, *arguments):
        made.append(len(batch.images))
        if len(made) == 2:
            raise KeyboardInterrupt
        return make(surrogate, attack, batch, *arguments)

    monkeypatch.setattr(fixed_examples, "attacked", interrupted)
    module = module_of(**settings)
    with pytest.raises(SystemExit):
        quiet_trainer(tmp_path).fit(module, toy())
    quiet_trainer(tmp_path).fit(module_of(**settings), toy())
    assert made == [4, 4, 4, 2]
