"""IDFRModule: its answers, losses and trainings, and what its checkpoints are good for."""

import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_advdef.attacks import BIM, FGSM, DeepFool, FullGradient, Transfer, Undefended
from lightning_advdef.attacks.surrogates import Surrogate
from lightning_advdef.checkpoints import save_defense
from lightning_advdef.defenses import fixed_examples
from lightning_advdef.defenses.fixed_examples import attacked
from lightning_advdef.defenses.idfr import WithParts
from lightning_advdef.errors import CheckpointError
from lightning_advdef.models import MLP, ConvNet, FeatureRestorer, InputDenoiser
from lightning_advdef.rng import SampleRNG
from tests.conftest import result_of
from tests.defenses.adversarial_training.helpers import SmallNetwork, quiet_trainer, toy
from tests.defenses.idfr.helpers import batch_of, changed, loaded, module_of, rng_of, saved, state_of, target_of

FRESH = pytest.mark.filterwarnings("ignore:the target stays")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints of a target and of both trainings that follow."""
    folder = tmp_path_factory.mktemp("idfr")
    target = target_of(folder)
    denoiser = saved(module_of(weights=target), folder / "denoise.ckpt", max_epochs=2)
    restorer = saved(module_of(stage="restore", weights=denoiser), folder / "restore.ckpt", max_epochs=2)
    return {"target": target, "denoise": denoiser, "restore": restorer}


@pytest.fixture
def whole(runs):
    """Target, denoiser and restorer, all trained."""
    return loaded(runs["restore"])


# answers


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


# losses


def written_again(module, batch, rng):
    """Eq. 3 with half of the weight on the adversarial images, from separate passes in eval mode."""
    target = module.classifier
    adversarial = attacked(FullGradient(target), FGSM(0.1), batch, rng.stream("adversary"), "prediction")
    noisy = [
        (batch.images + 8 / 255 * rng.stream("noise", number).normal(1, 8, 8)).clamp(0, 1)
        for number in range(module.noise_rounds)
    ]

    def one(images):
        denoised = module.denoiser(images)
        if module.denoiser_loss == "ce":
            return F.cross_entropy(target(denoised), batch.labels)
        clean, found = (target.features(target.normalize(each)) for each in (batch.images, denoised))
        return (found - clean).abs().mean()

    if not noisy:
        return one(adversarial)
    return one(adversarial) / 2 + sum(one(images) for images in noisy) / len(noisy) / 2


@pytest.mark.parametrize("loss", ["ce", "feature_l1"])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_denoiser_loss_is_that_of_adversarial_and_noisy_images(runs, loss, rounds):
    module = module_of(denoiser_loss=loss, noise_rounds=rounds, parts_weights=runs["denoise"])
    module.setup("test")
    module.eval()
    batch = batch_of()
    found = module.loss(batch, rng_of(batch))["loss"]
    torch.testing.assert_close(found, written_again(module, batch, rng_of(batch)))
    found.backward()
    assert all(parameter.grad is not None for parameter in module.denoiser.parameters())
    assert all(parameter.grad is None for parameter in module.classifier.parameters())


def test_restorer_loss_is_the_cross_entropy_of_restored_mixtures(runs, tmp_path):
    module = module_of(stage="restore", weights=runs["denoise"])
    trainer = quiet_trainer(tmp_path, max_epochs=0)
    trainer.fit(module, toy())
    module.on_fit_start()
    batch = batch_of()
    mixed = module._pools.mixtures(batch.labels, rng_of(batch), "same_class")
    expected = F.cross_entropy(module.classifier.head(module.restorer(mixed)), batch.labels)
    torch.testing.assert_close(module.loss(batch, rng_of(batch))["loss"], expected)


def test_pools_hold_embeddings_of_clean_and_adversarial_images_behind_the_denoiser(runs, tmp_path):
    module = module_of(stage="restore", weights=runs["denoise"], attacks=[FGSM(0.1), BIM(0.1, steps=2)])
    quiet_trainer(tmp_path).fit(module, toy())
    data = toy()
    data.setup("fit")
    images, labels, indices = data.train_dataloader().dataset.__getitems__([*range(10)])
    rng = SampleRNG.for_images(indices, 0, "train").stream("adversary")
    surrogate = FullGradient(module.classifier)
    batch = batch_of()._replace(images=images, labels=labels, indices=indices)
    versions = [images, *(attacked(surrogate, attack, batch, rng, "prediction") for attack in module.attacks)]
    module.eval()
    expected = [module.classifier.features(module.classifier.normalize(module.denoiser(each))) for each in versions]
    found = module._pools
    assert found.embeddings.shape == (30, 27)
    for label in range(10):
        own = torch.cat([each[labels == label] for each in expected])
        start = found.starts[label]
        pool = found.embeddings[start : start + found.counts[label].sum()]
        torch.testing.assert_close(pool.sum(dim=0), own.sum(dim=0))
    logits = module.classifier.head(torch.cat(expected))
    assert found.counts[:, 0].sum() == (logits.argmax(dim=1) == labels.repeat(3)).sum()


# adversarial training images


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
    return batch, [module._adversaries.draw(batch, *pair) for pair in zip(rngs, numbers, strict=True)]


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
    rng, found = rng_of(batch), []
    for number in range(12):
        module.on_train_batch_start(batch, number)
        whole = module._adversaries.draw(batch, rng, module._batch_rng())
        for half in (slice(0, 3), slice(3, 6)):
            part = type(batch)(*(values[half] for values in batch))
            torch.testing.assert_close(module._adversaries.draw(part, rng[half], module._batch_rng()), whole[half])
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
        assert len(module._adversaries.sets[0].images) == count


# trainings


@pytest.mark.parametrize(("stage", "start"), [("denoise", "target"), ("restore", "denoise")])
def test_only_the_part_in_training_changes(runs, tmp_path, stage, start):
    module = module_of(stage=stage, weights=runs[start])
    module.setup("fit")
    before = state_of(module)
    quiet_trainer(tmp_path, max_epochs=2).fit(module, toy())
    assert changed(module, before) == {"denoiser" if stage == "denoise" else "restorer"}


def test_target_is_that_of_the_earlier_training_to_the_bit(runs):
    states = {name: loaded(path).classifier.state_dict() for name, path in runs.items()}
    for name, value in states["target"].items():
        assert torch.equal(states["denoise"][name], value)
        assert torch.equal(states["restore"][name], value)


@pytest.mark.parametrize("stage", ["denoise", "restore"])
def test_frozen_parts_stay_in_eval_mode(stage):
    module = module_of(stage=stage).train()
    assert not any(layer.training for layer in module.classifier.modules())
    assert all(layer.training == (stage == "denoise") for layer in module.denoiser.modules())
    assert stage == "denoise" or all(layer.training for layer in module.restorer.modules())


def fitted(folder, stage, weights, steps=40):
    """Training loss at the start and at the end."""
    module = module_of(stage=stage, weights=weights, noise_rounds=1)
    module.setup("fit")
    optimizer, batch, found = adam_of(module), batch_of(), []
    if stage == "restore":
        data = toy(count=40)
        quiet_trainer(folder, max_epochs=0).fit(module, data)
        module.on_fit_start()
    module.train()
    for _ in range(steps):
        loss = module.loss(batch, rng_of(batch))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found[0], found[-1]


def adam_of(module):
    return torch.optim.Adam([each for each in module.parameters() if each.requires_grad], lr=1e-2)


@pytest.mark.parametrize(("stage", "start"), [("denoise", "target"), ("restore", "denoise")])
def test_loss_falls(runs, tmp_path, stage, start):
    first, last = fitted(tmp_path, stage, runs[start])
    assert last < 0.8 * first


@FRESH
@pytest.mark.parametrize("stage", ["denoise", "restore"])
def test_interrupted_training_goes_on_as_if_it_had_not_been(runs, tmp_path, stage):
    settings = {"stage": stage, "weights": runs["denoise"], "attacks": [FGSM(0.1), FGSM(0.2)]}
    whole = module_of(**settings)
    quiet_trainer(tmp_path, max_epochs=2).fit(whole, toy())
    first = quiet_trainer(tmp_path)
    first.fit(module_of(**settings), toy())
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = module_of(**settings)
    quiet_trainer(tmp_path, max_epochs=2).fit(second, toy(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert not changed(second, state_of(whole))


def test_untrained_target_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="the target stays as its network starts"):
        quiet_trainer(tmp_path, max_epochs=0).fit(module_of(), toy())


def train_together(folder, weights, devices):
    """Weights of a restorer after two epochs of one batch of 8 images, on adversarial images of a shared folder."""
    module = module_of(stage="restore", weights=weights, cache=str(folder / "cache"))
    strategy = {"devices": 2, "strategy": "ddp"} if devices == 2 else {}
    quiet_trainer(folder, max_epochs=2, **strategy).fit(module, toy(count=8, batch_size=8))
    return {name: value.numpy() for name, value in module.restorer.state_dict().items()}


def test_two_processes_restore_as_one(runs, tmp_path, ddp):
    expected = train_together(tmp_path / "one", runs["denoise"], devices=1)
    task = "tests.defenses.idfr.test_module:train_together"
    ranks = ddp(task, folder=tmp_path / "two", weights=runs["denoise"], devices=2)
    start = module_of(stage="restore").restorer.state_dict()
    for name, value in expected.items():
        for rank in ranks:
            np.testing.assert_allclose(rank[name], value, rtol=1e-3, atol=1e-5)
    assert all(np.abs(expected[name] - start[name].numpy()).max() > 1e-4 for name in start if "weight" in name)


# checkpoints


def test_restoring_without_a_trained_denoiser_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="stage: restore needs a trained denoiser"):
        quiet_trainer(tmp_path).fit(module_of(stage="restore"), toy())
    with pytest.raises(CheckpointError, match="holds no denoiser"):
        quiet_trainer(tmp_path).fit(module_of(stage="restore", weights=runs["target"]), toy())


def test_testing_a_restorer_that_was_not_trained_is_refused(runs):
    with pytest.raises(CheckpointError, match="holds no restorer"):
        module_of(stage="restore", weights=runs["denoise"]).setup("test")


def test_testing_without_a_restorer_that_was_trained_is_refused_unless_told(runs):
    with pytest.raises(CheckpointError, match="holds a restorer, which stage: denoise lacks"):
        module_of(weights=runs["restore"]).setup("test")
    with pytest.raises(CheckpointError, match="holds a restorer, which stage: denoise lacks"):
        module_of(weights=runs["target"], parts_weights=runs["restore"]).setup("test")
    for parts in ("denoiser", "target"):
        module_of(weights=runs["restore"], parts=parts).setup("test")


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


def test_parts_move_before_another_target(runs, tmp_path):
    target = target_of(tmp_path, network=functools.partial(MLP, hidden=[27]))
    network = functools.partial(MLP, hidden=[27])
    moved = module_of(network=network, stage="restore", weights=target, parts_weights=runs["restore"])
    moved.setup("test")
    whole, alone = loaded(runs["restore"]), loaded(target)
    for part in ("denoiser", "restorer"):
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(getattr(moved, part).state_dict()[name], value)
    images = batch_of().images
    features = alone.classifier.features(alone.classifier.normalize(whole.denoiser(images)))
    torch.testing.assert_close(moved.eval()(images), alone.classifier.head(whole.restorer(features)))


def test_restorer_of_another_width_is_refused(runs, tmp_path):
    target = target_of(tmp_path, network=functools.partial(MLP, hidden=[16]))
    settings = {"network": functools.partial(MLP, hidden=[16]), "weights": target, "parts_weights": runs["restore"]}
    with pytest.raises(CheckpointError, match="a restorer goes with targets of one embedding width"):
        module_of(stage="restore", **settings).setup("test")
    module_of(parts="denoiser", **settings).setup("test")


def test_denoiser_of_another_width_is_refused(runs):
    other = functools.partial(InputDenoiser, width=4)
    with pytest.raises(CheckpointError, match="the settings it was trained with"):
        module_of(denoiser=other, weights=runs["denoise"]).setup("test")


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("denoiser", functools.partial(InputDenoiser, width=2, skip_from=1)),
        ("denoiser", functools.partial(InputDenoiser, width=2, residual_activation="relu")),
        ("restorer", functools.partial(FeatureRestorer, hidden=[8, 4], skips=True)),
    ],
)
def test_part_with_weights_of_one_shape_but_other_settings_is_refused(runs, part, other):
    with pytest.raises(CheckpointError, match=f"the {part} in .* was trained with .*: change --model.{part}"):
        module_of(stage="restore", weights=runs["restore"], **{part: other}).setup("test")


def test_settings_at_their_defaults_need_not_be_written(runs):
    denoiser = functools.partial(InputDenoiser, width=2, skip_from=2, residual_activation="linear")
    restorer = functools.partial(FeatureRestorer, hidden=(8, 4), batch_norm=False)
    module_of(stage="restore", weights=runs["restore"], denoiser=denoiser, restorer=restorer).setup("test")


def test_a_moved_denoiser_gets_a_restorer_of_its_own(runs, tmp_path):
    network = functools.partial(MLP, hidden=[16])
    target = target_of(tmp_path, network=network)
    module = module_of(network=network, stage="restore", weights=target, parts_weights=runs["denoise"])
    quiet_trainer(tmp_path).fit(module, toy())
    assert torch.equal(module.denoiser.layer1[0].weight, loaded(runs["denoise"]).denoiser.layer1[0].weight)


@pytest.fixture(scope="module")
def moved_denoiser(runs, tmp_path_factory):
    """Where a new restorer behind a denoiser of another training is, and what both were made from."""
    folder = tmp_path_factory.mktemp("moved")
    settings = {"stage": "restore", "weights": target_of(folder), "parts_weights": runs["denoise"]}
    return saved(module_of(**settings), folder / "moved.ckpt"), settings


def test_trained_parts_are_not_replaced_by_those_that_training_began_with(moved_denoiser):
    path, _ = moved_denoiser
    module = loaded(path)
    before = state_of(module)
    module.denoiser.layer1[0].weight.data.zero_()
    module.setup("test")
    assert changed(module, before) == {"denoiser"}


def test_testing_two_files_with_trained_parts_is_refused(moved_denoiser):
    path, settings = moved_denoiser
    with pytest.raises(CheckpointError, match="holds its own denoiser and restorer, which parts_weights would replace"):
        module_of(**settings | {"weights": path}).setup("test")


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
    with pytest.raises(ValueError, match=r"IDFR needs|largest_eps"):
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


def test_fit_with_some_of_the_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="parts: denoiser is for tests"):
        quiet_trainer(tmp_path).fit(module_of(parts="denoiser"), toy())


# attackers


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


def test_target_alone_and_target_with_denoiser_have_nothing_else_to_know():
    assert set(module_of().adaptive_surrogates()) == {"full_gradient"}
    assert set(module_of(stage="restore", parts="target").adaptive_surrogates()) == {"full_gradient"}


def test_surrogates_of_other_parts_are_told_apart(whole):
    assert WithParts(whole, "denoiser").describe() != WithParts(whole, "target").describe()
    batch = batch_of()
    torch.testing.assert_close(
        WithParts(whole, "target")(batch.images, rng_of(batch)), Undefended(whole)(batch.images, rng_of(batch))
    )


# the command line


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
