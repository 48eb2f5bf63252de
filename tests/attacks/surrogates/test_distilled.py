"""The file that distillation writes, and its use as the stand-in of BPDA."""

import pytest
import torch

from lightning_advdef.attacks import BPDA, DistilledPurifier
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import loss_and_gradient
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.attacks.surrogates.distilled import save_distilled
from lightning_advdef.errors import CheckpointError
from lightning_advdef.models import StandIn
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import random_linear, seeded
from tests.conftest import GOLDEN
from tests.toys import DetachedInput

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def made(seed=0, channels=1):
    network = seeded(lambda: StandIn(channels, width=3), seed)
    torch.nn.init.normal_(network.linear.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return network


@pytest.fixture
def file(tmp_path):
    save_distilled(made(), tmp_path / "deep" / "stand_in.ckpt")
    return tmp_path / "deep" / "stand_in.ckpt"


def test_what_was_saved_is_read(file):
    with torch.no_grad():
        assert torch.equal(DistilledPurifier(str(file))(IMAGES), made()(IMAGES))
    assert [path.name for path in file.parent.iterdir()] == ["stand_in.ckpt"], "no unfinished file is left"


def test_bpda_takes_its_gradient_and_not_its_answer(file):
    defense = DetachedInput(lambda spec: random_linear(10, 64), spec="digits").eval()
    surrogate, goal = BPDA(defense, DistilledPurifier(str(file))), Goal(torch.arange(5))
    rng = SampleRNG.default(IMAGES)
    found = loss_and_gradient(surrogate, IMAGES, goal, cross_entropy, rng)
    leaf, bare = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    (after,) = torch.autograd.grad(cross_entropy(defense.classifier(bare), goal).sum(), bare)
    (expected,) = torch.autograd.grad(made()(leaf), leaf, after)
    torch.testing.assert_close(found.gradient, expected)
    assert torch.equal(found.logits, defense(IMAGES, rng).detach())


def test_a_gradient_passes_through_one_that_was_read_in_inference_mode(file):
    with torch.inference_mode():
        network = DistilledPurifier(str(file))
    leaf = IMAGES.clone().requires_grad_()
    assert torch.autograd.grad(network(leaf).sum(), leaf)[0].any()


def test_the_description_changes_with_the_weights(tmp_path):
    defense = DetachedInput(lambda spec: random_linear(10, 64), spec="digits")
    described = []
    for seed in (0, 1, 0):
        save_distilled(made(seed), tmp_path / "same.ckpt")
        described.append(BPDA(defense, DistilledPurifier(str(tmp_path / "same.ckpt"))).describe())
    assert described[0] == described[2] != described[1]


def test_images_with_other_channels_are_refused(file):
    with pytest.raises(ValueError, match=r"stand_in.ckpt takes images with 1 channels, got 3: distil the defense"):
        DistilledPurifier(str(file))(IMAGES.expand(-1, 3, -1, -1))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*gone.ckpt"):
        DistilledPurifier(str(tmp_path / "gone.ckpt"))


def test_other_weights_are_refused():
    with pytest.raises(CheckpointError, match=r"digits_mlp.safetensors holds no distilled purifier: write one with"):
        DistilledPurifier(str(GOLDEN / "digits_mlp.safetensors"))
