"""Transfer: another network is differentiated, the deployed one is not asked."""

import functools
import warnings

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import EOT, FGSM, PGD, FullGradient, Transfer
from lightning_advdef.checkpoints import weights_hash
from lightning_advdef.data import get_spec
from lightning_advdef.defenses import StandardModule
from lightning_advdef.errors import CheckpointError
from lightning_advdef.models import MLP, LeNet
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import seeded
from tests.conftest import ROOT, result_of, scenario
from tests.test_checkpoints import save
from tests.toys import NoisyInput, RoundedInput

NETWORK = functools.partial(MLP, hidden=[12])
IMAGES = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(9)
MNIST = str(ROOT / "checkpoints" / "mnist_lenet_reference.ckpt")


class Silent(StandardModule):
    """A deployed defense that must not be asked."""

    def deploy(self, images, rng, purify):
        raise AssertionError("the deployed defense was asked")


def make(kind=Silent, spec="digits", seed=0):
    return seeded(lambda: kind(NETWORK, spec=spec), seed)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A trained network of this package, and the path of its checkpoint."""
    source = make(StandardModule, seed=1)
    path = save(source, tmp_path_factory.mktemp("source") / "source.ckpt")
    return source.eval(), str(path)


def test_a_checkpoint_gives_the_gradient_of_its_network(stored):
    source, path = stored
    found = PGD(0.1, steps=3)(EOT(make(), of=functools.partial(Transfer, checkpoint=path), samples=1), IMAGES, LABELS)
    same = PGD(0.1, steps=3)(Transfer(make(), checkpoint=path), IMAGES, LABELS)
    assert torch.equal(FGSM(0.1)(Transfer(make(), path), IMAGES, LABELS), FGSM(0.1)(source, IMAGES, LABELS))
    assert torch.equal(found, same)


def test_a_factory_gives_the_gradient_of_what_it_makes():
    made = []

    def network(spec):
        made.append(NETWORK(spec))
        return made[-1]

    found = FGSM(0.1)(Transfer(make(), network=network), IMAGES, LABELS)
    assert made[0].spec == get_spec("digits")
    assert torch.equal(found, FGSM(0.1)(made[0], IMAGES, LABELS))


def test_the_source_runs_in_eval_mode_and_is_left_as_it_was():
    class Dropping(MLP):
        def forward(self, images):
            assert not self.training
            assert not any(parameter.requires_grad for parameter in self.parameters())
            return super().forward(images)

    surrogate = Transfer(make(), network=functools.partial(Dropping, hidden=[4]))
    surrogate.source.train()
    PGD(0.1, steps=2)(surrogate, IMAGES, LABELS)
    assert surrogate.source.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in surrogate.source.parameters())


def test_a_random_source_is_drawn_by_eot():
    surrogate = EOT(make(), of=lambda defense: Transfer(defense, network=lambda spec: make(NoisyInput)), samples=3)
    logits = surrogate(IMAGES, SampleRNG.default(IMAGES))
    assert not torch.equal(logits[0], logits[1])


def test_the_test_time_part_of_the_source_is_attacked_too():
    surrogate = Transfer(make(), network=lambda spec: make(RoundedInput))
    passes = surrogate.start_counting(9, IMAGES.device)
    FGSM(0.1)(surrogate, IMAGES, LABELS)
    assert passes.zero_gradients.tolist() == [1] * 9


def test_it_is_not_exact_and_access_is_transfer(stored):
    surrogate = Transfer(make(), stored[1])
    assert surrogate.access == "transfer"
    assert not surrogate.exact
    assert surrogate.modules == (surrogate.source,)


@pytest.mark.parametrize(("given", "what"), [({}, "neither"), ({"checkpoint": MNIST, "network": MLP}, "both")])
def test_exactly_one_source_is_needed(given, what):
    with pytest.raises(ValueError, match=f"checkpoint or a network, got {what}"):
        Transfer(make(), **given)


def test_parts_of_a_network_that_has_none_are_refused(stored):
    with pytest.raises(ValueError, match=r"source\.ckpt is not made of parts, got parts 'denoiser'"):
        Transfer(make(), stored[1], parts="denoiser")


def test_a_source_with_the_weights_of_the_target_is_warned_of(stored):
    target = make(seed=2)
    surrogate = Transfer(target, stored[1])
    target.load_state_dict(stored[0].state_dict())  # as in a run, after it is bound
    with pytest.warns(UserWarning, match=r"source\.ckpt has the weights of the network under attack"):
        FGSM(0.1)(surrogate, IMAGES, LABELS)


def test_an_independent_source_is_not_warned_of(stored):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FGSM(0.1)(Transfer(make(seed=2), stored[1]), IMAGES, LABELS)


def test_a_source_for_other_images_is_refused():
    with pytest.raises(ValueError, match=r"mnist_lenet_reference.ckpt takes .* \(1, 28, 28\), .* \(1, 8, 8\)"):
        Transfer(make(), MNIST)


def test_a_source_for_other_classes_is_refused(stored):
    with pytest.raises(ValueError, match="knows 10 classes, but the defense knows 7"):
        Transfer(make(spec="1x8x8x7"), stored[1])


def test_a_factory_that_ignores_the_classes_is_refused_at_the_first_answer():
    surrogate = Transfer(make(), network=lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(ValueError, match="Sequential knows 3 classes, but the defense knows 10"):
        FGSM(0.1)(surrogate, IMAGES, LABELS)


def test_a_network_that_says_nothing_of_its_images_can_be_attacked_from_a_checkpoint(stored):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert torch.equal(FGSM(0.1)(Transfer(plain, stored[1]), IMAGES, LABELS), FGSM(0.1)(stored[0], IMAGES, LABELS))
    with pytest.raises(ValueError, match=r"\(1, 28, 28\), .* \(1, 8, 8\)"):
        FGSM(0.1)(Transfer(plain, MNIST), IMAGES, LABELS)
    with pytest.raises(ValueError, match="does not say what images"):
        Transfer(plain, network=MLP)


def test_a_missing_checkpoint_is_said_so():
    with pytest.raises(CheckpointError, match=r"no checkpoint at nothing\.ckpt"):
        Transfer(make(), "nothing.ckpt")


def test_the_description_holds_the_weights(stored):
    source, path = stored
    assert Transfer(make(), path).describe() == {
        "surrogate": "Transfer",
        "access": "transfer",
        "surrogate_settings": {"checkpoint": path, "network": "MLP", "weights": weights_hash(source), "parts": None},
    }
    sources = [make(seed=1), make(seed=2)]
    one, other = (Transfer(make(), network=lambda spec: sources.pop()).describe() for _ in range(2))
    assert one != other


def test_the_shipped_network_can_be_a_source():
    target = LeNet(get_spec("mnist"))
    surrogate = Transfer(target, MNIST)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = FGSM(0.1)(surrogate, images, LABELS[:2])
    assert torch.equal(found, FGSM(0.1)(FullGradient(surrogate.source), images, LABELS[:2]))


def test_the_command_line_takes_checkpoints_and_networks(advdef, stored):
    own = {"class_path": "Transfer", "init_args": {"checkpoint": stored[1]}}
    lenet = {"class_path": "MLP", "init_args": {"hidden": [5]}}
    scenarios = [
        scenario("checkpoint", "FGSM", surrogate=own, eps=0.2),
        scenario("network", "FGSM", surrogate={"class_path": "Transfer", "init_args": {"network": lenet}}, eps=0.2),
    ]
    summary, rows = result_of(advdef.digits("test", scenarios=scenarios))
    checkpoint, network = summary["scenarios"]
    assert checkpoint["access"] == network["access"] == "transfer"
    assert checkpoint["surrogate_settings"]["weights"] == weights_hash(stored[0])
    assert network["surrogate_settings"]["network"] == "MLP"
    assert (rows["checkpoint/linf"] > 0.19).all()
