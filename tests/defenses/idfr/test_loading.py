"""What checkpoints of both trainings are good for."""

import functools

import pytest
import torch

from lightning_advdef.errors import CheckpointError
from lightning_advdef.models import MLP, FeatureRestorer, InputDenoiser
from tests.defenses.adversarial_training.helpers import quiet_trainer, toy
from tests.defenses.idfr.helpers import (
    batch_of,
    changed,
    loaded,
    module_of,
    saved,
    state_of,
    target_of,
)


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
