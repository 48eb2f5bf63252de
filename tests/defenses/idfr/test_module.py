"""IDFRModule: its answers, settings and attackers, and the command line."""

import functools
import json

import pytest
import torch

from lightning_advdef.attacks import DeepFool, FullGradient, Transfer, Undefended
from lightning_advdef.attacks.surrogates import Surrogate
from lightning_advdef.checkpoints import save_defense
from lightning_advdef.models import ConvNet, FeatureRestorer, InputDenoiser
from tests.conftest import result_of
from tests.defenses.adversarial_training.helpers import SmallNetwork, toy
from tests.defenses.idfr.helpers import (
    batch_of,
    loaded,
    module_of,
    rng_of,
)


def test_answer_is_that_of_the_head_on_restored_features_of_denoised_images(whole):
    images, target = batch_of().images, whole.classifier
    denoised = images + whole.denoiser.residual(images)
    features = target.features(target.normalize(denoised))
    torch.testing.assert_close(whole(images), target.head(whole.restorer(features)))
    whole.parts = "denoiser"
    torch.testing.assert_close(whole(images), target(denoised))
    whole.parts = "target"
    torch.testing.assert_close(whole(images), target(images))
    assert not torch.equal(target(images), target(denoised))


def test_undefended_is_the_target(whole):
    assert whole.undefended is whole.classifier


def test_full_gradient_passes_through_all_parts(whole):
    images = batch_of().images.requires_grad_()
    (found,) = torch.autograd.grad(FullGradient(whole)(images, rng_of(batch_of())).sum(), images)

    def by_hand(leaf):
        features = whole.classifier.features(whole.classifier.normalize(whole.denoiser(leaf)))
        return whole.classifier.head(whole.restorer(features)).sum()

    torch.testing.assert_close(found, torch.autograd.grad(by_hand(images), images)[0])
    assert found.abs().max() > 0


def test_an_image_alone_is_answered_as_in_a_batch(whole):
    images = batch_of().images
    torch.testing.assert_close(torch.cat([whole(image[None]) for image in images]), whole(images))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stage": "restore"}, ["target", "denoiser", "restorer"]),
        ({"stage": "restore", "parts": "denoiser"}, ["target", "denoiser"]),
        ({"stage": "restore", "parts": "target"}, ["target"]),
        ({}, ["target", "denoiser"]),
    ],
)
def test_results_state_the_parts_that_answer(settings, expected):
    assert module_of(**settings).in_use() == {"deployed": expected}


def test_classifier_without_embeddings_has_nothing_to_restore():
    settings = {"network": ConvNet, "spec": "cifar10"}
    with pytest.raises(ValueError, match="the head of ConvNet is Sequential"):
        module_of(stage="restore", **settings)
    module_of(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"parts": "head"},
        {"stage": "both"},
        {"noise": -1.0},
        {"noise_rounds": -1},
        {"attacks": []},
        {"largest_eps": 0.0},
        {"largest_eps": 0.1, "attacks": [DeepFool()]},
        {"largest_eps": 0.1, "cache": "somewhere"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"IDFR needs|largest_eps|(parts|stage) must be"):
        module_of(**settings)


@pytest.mark.parametrize(
    ("settings", "choices"),
    [
        ({"pairing": "any"}, "same_class or correct_wrong"),
        ({"leaves": "true"}, "label or prediction"),
        ({"denoiser_loss": "l2"}, "ce or feature_l1"),
    ],
)
def test_unknown_words_are_refused_with_the_choices(settings, choices):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be {choices}"):
        module_of(**settings)


def test_attackers_know_the_other_parts(whole):
    found = {name: make(whole) for name, make in whole.adaptive_surrogates().items()}
    assert set(found) == {"full_gradient", "without_restorer"}
    batch = batch_of()
    whole.parts = "denoiser"
    expected = whole(batch.images)
    whole.parts = "all"
    assert isinstance(found["without_restorer"], Surrogate)
    torch.testing.assert_close(found["without_restorer"](batch.images, rng_of(batch))[0], expected)
    assert not torch.equal(expected, whole(batch.images))


def test_attack_on_the_whole_is_transferred_back_to_target_and_denoiser(whole):
    batch = batch_of()
    expected = whole(batch.images)
    whole.parts = "denoiser"
    found = {name: make(whole) for name, make in whole.adaptive_surrogates().items()}
    assert set(found) == {"full_gradient", "with_restorer"}
    torch.testing.assert_close(found["with_restorer"](batch.images, rng_of(batch))[0], expected)


@pytest.mark.parametrize("parts", ["target", "denoiser", "all"])
def test_any_parts_of_another_defense_can_be_attacked(runs, parts):
    source, batch = loaded(runs["restore"]), batch_of()
    surrogate = Transfer(module_of(), network=lambda spec: source, parts=parts)
    found = surrogate(batch.images, rng_of(batch))[0]
    source.parts = parts
    torch.testing.assert_close(found, source(batch.images))
    assert surrogate.access == "transfer"


def test_who_attacks_own_parts_knows_the_defense(whole):
    assert Transfer(whole, parts="denoiser").access == "adaptive"


def test_parts_that_there_are_not_are_refused(whole):
    with pytest.raises(ValueError, match="parts must be target or denoiser or all, got 'head'"):
        Transfer(whole, parts="head")


def test_target_alone_and_target_with_denoiser_have_nothing_else_to_know():
    assert set(module_of().adaptive_surrogates()) == {"full_gradient"}
    assert set(module_of(stage="restore", parts="target").adaptive_surrogates()) == {"full_gradient"}


def test_surrogates_of_other_parts_are_told_apart(whole):
    assert Transfer(whole, parts="denoiser").describe() != Transfer(whole, parts="target").describe()
    batch = batch_of()
    torch.testing.assert_close(
        Transfer(whole, parts="target")(batch.images, rng_of(batch)), Undefended(whole)(batch.images, rng_of(batch))
    )


def test_both_trainings_and_any_parts_from_the_command_line(advdef, runs):
    attack = {"class_path": "FGSM", "init_args": {"eps": 0.1}}
    options = [
        *("--model", "IDFRModule", "--model.network", f"{SmallNetwork.__module__}.SmallNetwork"),
        *("--model.denoiser", "InputDenoiser", "--model.denoiser.width", 2),
        *("--model.restorer", "FeatureRestorer", "--model.restorer.hidden", "[8, 4]"),
        *("--data", "tests.toys.Toy", "--data.val_fraction", 0),
        *("--model.attacks", json.dumps([attack])),
    ]
    epoch = ["--trainer.max_epochs", 1]
    first = advdef("fit", *options, *epoch, "--model.weights", runs["target"], name="denoise")
    options += ["--model.stage", "restore"]
    second = advdef("fit", *options, *epoch, "--model.weights", first / "model.ckpt", name="restore")
    module, found = loaded(second / "model.ckpt"), {}
    scenarios = json.dumps([{"name": "known", "attack": attack, "surrogate": "adaptive"}])
    for parts in ("target", "all"):
        module.parts = parts
        command = [*options, "--model.weights", second / "model.ckpt", "--model.parts", parts]
        folder = advdef("test", *command, "--evaluation.scenarios", scenarios, name=f"parts_{parts}")
        summary, rows = result_of(folder)
        found[parts] = rows["clean/prediction"]
        images = toy().load("test").read(torch.arange(10))
        assert found[parts][:10].tolist() == module(images).argmax(dim=1).tolist()
        names = [scenario["name"] for scenario in summary["scenarios"]]
        other = {"target": [], "all": ["known/without_restorer"]}
        assert names == ["known/full_gradient", *other[parts]]


def test_released_variants_survive_a_checkpoint(tmp_path):
    module = module_of(
        denoiser=functools.partial(InputDenoiser, width=2, skip_from=1, residual_activation="relu"),
        restorer=functools.partial(FeatureRestorer, hidden=[8, 4], batch_norm=True, skips=True),
        stage="restore",
        denoiser_loss="feature_l1",
    )
    save_defense(module, tmp_path / "whole.ckpt")
    images = batch_of().images
    torch.testing.assert_close(loaded(tmp_path / "whole.ckpt")(images), module.eval()(images))
