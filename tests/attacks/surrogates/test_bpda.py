"""BPDA: the deployed answer, and the gradient of the identity or of a stand-in."""

import functools

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import BPDA, PGD, DeepFool, FullGradient
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.gradients import boundaries, loss_and_gradient
from lightning_advdef.attacks.losses import cross_entropy
from lightning_advdef.defenses import DefenseModule
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import right, seeded
from tests.conftest import result_of, scenario
from tests.toys import DetachedInput, NoisyInput, RoundedInput

NETWORK = functools.partial(MLP, hidden=[12])
IMAGES = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
RNG = SampleRNG.for_images(torch.arange(9), seed=3)


class Squared(DefenseModule):
    """Writes to the images it is given."""

    def purify(self, images, rng):
        return images.mul_(images)


class Cropped(DefenseModule):
    """A purifier whose output has another shape."""

    def purify(self, images, rng):
        return images[:, :, 2:-2, 2:-2].round()

    def classify(self, images):
        return self.classifier(nn.functional.pad(images, (2, 2, 2, 2)))


class Crop(nn.Module):
    def forward(self, images):
        return images[:, :, 2:-2, 2:-2]


class Scale(nn.Module):
    """Multiplies by a parameter, behind dropout that only training mode would show."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.dropout = nn.Parameter(torch.tensor(factor)), nn.Dropout(0.9)

    def forward(self, images):
        assert not self.training
        assert not self.factor.requires_grad
        return self.dropout(images * self.factor)


def make(defense, **settings):
    return seeded(lambda: defense(NETWORK, spec="digits", **settings)).eval()


def labels_of(defense):
    with torch.no_grad():
        return defense(IMAGES, RNG).argmax(dim=1)


def gradient(surrogate, images=IMAGES):
    return loss_and_gradient(surrogate, images, Goal(labels_of(surrogate.defense)), cross_entropy, RNG).gradient


@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize("defense", [RoundedInput, NoisyInput, DetachedInput])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_the_answer_is_the_deployed_one_bit_by_bit(defense, votes, with_gradient):
    defense = make(defense, votes=votes)
    found = BPDA(defense)(IMAGES.clone().requires_grad_(with_gradient), RNG)[0]
    assert torch.equal(found, defense(IMAGES, RNG.stream("defense")))
    assert torch.equal(found, FullGradient(defense)(IMAGES, RNG)[0])


def test_the_gradient_is_that_of_the_classifier_at_the_purified_image():
    defense = make(RoundedInput)
    bare = loss_and_gradient(
        FullGradient(defense.classifier), IMAGES.round(), Goal(labels_of(defense)), cross_entropy, RNG
    )
    assert torch.equal(gradient(BPDA(defense)), bare.gradient)
    assert not gradient(FullGradient(defense)).any()


def test_votes_have_the_gradient_of_their_mean():
    defense = make(NoisyInput, votes=4)
    torch.testing.assert_close(gradient(BPDA(defense)), gradient(FullGradient(defense)))


def test_a_stand_in_gives_its_vector_jacobian_product():
    defense, stand_in = make(RoundedInput), nn.Conv2d(1, 1, 3, padding=1)
    found = gradient(BPDA(defense, stand_in))
    leaf = IMAGES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(stand_in(leaf), leaf, gradient(BPDA(defense)))
    torch.testing.assert_close(found, expected)


def test_the_normals_of_boundaries_go_the_same_way():
    defense = make(RoundedInput)
    found = boundaries(BPDA(defense, nn.Conv2d(1, 1, 1)), IMAGES, None, RNG)
    bare = boundaries(FullGradient(defense.classifier), IMAGES.round(), None, RNG)
    identity = boundaries(BPDA(defense), IMAGES, None, RNG)
    torch.testing.assert_close(identity.normals, bare.normals)
    assert found.normals.shape == bare.normals.shape
    assert torch.equal(found.logits, defense(IMAGES))


def test_the_stand_in_runs_in_eval_mode_and_is_left_as_it_was():
    defense, stand_in = make(RoundedInput), Scale(0.5).train()
    PGD(0.1, steps=2)(BPDA(defense, stand_in), IMAGES, labels_of(defense))
    assert stand_in.training
    assert stand_in.dropout.training
    assert stand_in.factor.requires_grad
    assert stand_in.factor.grad is None
    assert stand_in.factor == 0.5


def test_the_stand_in_does_not_run_where_no_gradient_is_taken():
    surrogate = BPDA(make(RoundedInput), Scale(0.5).train())
    with torch.no_grad():
        surrogate(IMAGES, RNG)


def test_a_purifier_may_write_to_its_images():
    defense, images = make(Squared), IMAGES.clone()
    surrogate = BPDA(defense)
    found = surrogate(images.requires_grad_(), RNG)[0]
    assert torch.equal(images.detach(), IMAGES)
    assert torch.equal(found, defense.classifier(IMAGES * IMAGES))


def test_the_identity_needs_a_purifier_that_keeps_the_shape():
    defense = make(Cropped)
    with pytest.raises(ValueError, match=r"Cropped .* \(1, 8, 8\) to \(1, 4, 4\), .* the identity .* stand_in"):
        PGD(0.1, steps=1)(BPDA(defense), IMAGES, labels_of(defense))
    with pytest.raises(ValueError, match=r"stand_in gives \(1, 8, 8\)"):
        PGD(0.1, steps=1)(BPDA(defense, nn.Identity()), IMAGES, labels_of(defense))


def test_a_stand_in_of_the_right_shape_serves_a_purifier_that_crops():
    defense = make(Cropped)
    found = gradient(BPDA(defense, Crop()))
    assert found[:, :, 2:-2, 2:-2].any()
    assert found.count_nonzero() == found[:, :, 2:-2, 2:-2].count_nonzero()


def test_a_network_without_a_purifier_has_its_full_gradient(network, images, labels):
    attack = PGD(0.1, steps=3)
    averaged = BPDA(network)
    rng = SampleRNG.default(images)
    for found, expected in zip(
        loss_and_gradient(averaged, images, Goal(labels), cross_entropy, rng),
        loss_and_gradient(FullGradient(network), images, Goal(labels), cross_entropy, rng),
        strict=True,
    ):
        assert torch.equal(found, expected)
    assert right(network, attack(averaged, images, labels), labels).sum() < right(network, images, labels).sum()


def test_a_defense_that_hides_its_purifier_is_refused():
    class Hidden(nn.Module):
        stochastic = False

        def adaptive_surrogates(self):
            return {}

    with pytest.raises(ValueError, match=r"Hidden has no purify.* Undefended"):
        BPDA(Hidden())


@pytest.mark.parametrize("attack", [PGD(0.2, steps=10), DeepFool()], ids=["PGD", "DeepFool"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_that_cuts_the_gradient_is_broken(attack, dtype):
    defense = make(RoundedInput)
    surrogate, labels = BPDA(defense), labels_of(defense)
    surrogate.search_dtype = dtype
    assert right(defense, attack(surrogate, IMAGES, labels), labels).sum() < len(labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_are_those_of_the_full_gradient_that_never_stops(dtype):
    surrogate = BPDA(make(RoundedInput), Scale(1.0))
    surrogate.search_dtype = dtype
    passes = surrogate.start_counting(9, IMAGES.device)
    PGD(0.3, steps=5)(surrogate, IMAGES, labels_of(surrogate.defense))
    assert passes.forward.tolist() == [6] * 9
    assert passes.backward.tolist() == [5] * 9
    assert not passes.zero_gradients.any()


def test_the_description_tells_stand_ins_apart():
    defense = make(RoundedInput)
    surrogates = [BPDA(defense), BPDA(defense, Scale(0.5)), BPDA(defense, Scale(0.6)), BPDA(defense, nn.Identity())]
    described = [surrogate.describe() for surrogate in surrogates]
    assert described[0] == {"surrogate": "BPDA", "access": "bpda", "surrogate_settings": {"stand_in": None}}
    assert all(one != other for row, one in enumerate(described) for other in described[:row])
    assert BPDA(defense, Scale(0.5)).describe() == described[1]


@pytest.mark.parametrize("defense", ["DetachedInput", "RoundedInput"])
def test_the_command_line_breaks_a_cut_gradient_with_bpda(advdef, defense):
    # in eval mode batch normalisation with its first weights is the identity
    pgd = {"eps": 0.3, "steps": 10, "random_start": False}
    normalised = {
        "class_path": "BPDA",
        "init_args": {"stand_in": {"class_path": "torch.nn.BatchNorm2d", "init_args": {"num_features": 1}}},
    }
    scenarios = [
        scenario("white", "PGD", **pgd),
        scenario("bpda", "PGD", surrogate="BPDA", **pgd),
        scenario("normalised", "PGD", surrogate=normalised, **pgd),
    ]
    summary, _ = result_of(advdef.digits("test", "--model", f"tests.toys.{defense}", scenarios=scenarios, limit=30))
    white, bpda, stand_in = summary["scenarios"]
    assert white["robust_accuracy"] == summary["clean_accuracy"]
    assert bpda["robust_accuracy"]["value"] < summary["clean_accuracy"]["value"] - 0.4
    assert stand_in["robust_accuracy"] == bpda["robust_accuracy"]
    assert bpda["access"] == "bpda"
    assert bpda["surrogate_settings"] == {"stand_in": None}
