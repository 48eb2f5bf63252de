"""AutoAttack's versions, order, price, and its number beside the reference's."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_advdef.attacks import APGD, EOT, FAB, AutoAttack, FullGradient, Square, TargetedAPGD, TargetedFAB
from lightning_advdef.attacks.cost import Cost
from lightning_advdef.checkpoints import load_weights
from lightning_advdef.data import Digits, get_spec
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import (
    NeverFooled,
    ShortAutoAttack,
    make_network,
    middle_images,
    random_linear,
    right,
    seeded,
)
from tests.conftest import GOLDEN


@pytest.fixture(scope="module")
def digits():
    """The golden network and 60 images with labels."""
    network = MLP(get_spec("digits"), hidden=[32])
    load_weights(nn.ModuleDict({"classifier": network}), GOLDEN / "digits_mlp.safetensors", complete=False)
    data = Digits(batch_size=60)
    data.setup("test")
    images, labels, _ = next(iter(data.test_dataloader()))
    return network.eval(), images, labels


# versions


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_standard_is_the_references_order_and_settings(norm):
    assert list(AutoAttack(0.1, norm).parts().items()) == [
        ("apgd_ce", APGD(0.1, norm, steps=100, restarts=1, loss="cross_entropy", rho=0.75)),
        ("apgd_t", TargetedAPGD(0.1, norm, steps=100, restarts=1, targets=9)),
        ("fab_t", TargetedFAB(norm, steps=100, restarts=1, targets=9, alpha_max=0.1, eta=1.05, beta=0.9, enough=0.1)),
        ("square", Square(0.1, norm, queries=5000, p_init=0.8, restarts=1)),
    ]


def test_plus_is_the_references_order_and_settings():
    assert list(AutoAttack(0.1, version="plus").parts().items()) == [
        ("apgd_ce", APGD(0.1, steps=100, restarts=5)),
        ("apgd_dlr", APGD(0.1, steps=100, restarts=5, loss="dlr")),
        ("fab", FAB("linf", steps=100, restarts=5, enough=0.1)),
        ("square", Square(0.1, queries=5000, p_init=0.8)),
        ("apgd_t", TargetedAPGD(0.1, steps=100, targets=9)),
        ("fab_t", TargetedFAB("linf", steps=100, targets=9, enough=0.1)),
    ]


def test_rand_is_the_references_order_and_settings():
    assert list(AutoAttack(0.1, version="rand").parts().items()) == [
        ("apgd_ce", APGD(0.1, steps=100, restarts=1)),
        ("apgd_dlr", APGD(0.1, steps=100, restarts=1, loss="dlr")),
    ]
    assert AutoAttack.eot_samples == 20


def test_another_budget_reaches_all_parts():
    parts = AutoAttack(0.1).with_eps(0.2).parts()
    assert [getattr(part, "eps", getattr(part, "enough", None)) for part in parts.values()] == [0.2] * 4


# what it costs


def test_standard_costs_at_most_what_the_reference_costs():
    # counted on the reference with ten classes: 7857 forward and 1910 backward passes
    cost = AutoAttack(0.1).cost(10)
    assert cost == Cost(6928, 1900)
    assert cost.forward <= 7857
    assert cost.backward <= 1910


def test_each_part_costs_at_most_what_the_references_part_costs():
    reference = {"apgd_ce": (102, 101), "apgd_t": (919, 909), "fab_t": (1828, 900), "square": (5003, 0)}
    for name, part in AutoAttack(0.1).parts().items():
        cost = part.cost(10)
        assert cost.forward <= reference[name][0], name
        assert cost.backward <= reference[name][1], name


def spent(attack, classes, surrogate=FullGradient):
    """The most passes that an image of a network that is never fooled costs, without what Square spares itself."""
    bound = surrogate(NeverFooled(classes))
    passes = bound.start_counting(3, torch.device("cpu"))
    attack(bound, middle_images(3, 2, 6, 6), torch.zeros(3, dtype=torch.int64))
    for name, part in attack.parts().items():
        if isinstance(part, Square):
            assert (bound.ledger[f"{name}/forward"] <= part.cost(classes).forward + 1).all()
            passes.forward += int(part.cost(classes).forward) + 1 - bound.ledger[f"{name}/forward"]
    (found,) = set(zip(passes.forward.tolist(), passes.backward.tolist(), strict=True))
    return found


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_price_is_what_an_image_that_is_never_fooled_costs(version, classes):
    attack = ShortAutoAttack(0.05, version=version)
    assert spent(attack, classes) == attack.cost(classes)


@pytest.mark.slow
def test_the_price_of_standard_is_what_an_image_that_is_never_fooled_costs():
    assert spent(AutoAttack(0.05), 10) == AutoAttack(0.05).cost(10)


def test_rand_takes_twenty_draws_of_a_step_and_one_of_a_verdict():
    attack = AutoAttack(0.05, version="rand")
    assert attack.cost(10) == Cost(20 * 2 * 101 + 4, 20 * 2 * 100)


def test_rand_keeps_the_draws_of_a_surrogate_that_has_several():
    attack = replace(ShortAutoAttack(0.05, version="rand"))
    forward, backward = spent(attack, 4, lambda network: EOT(network, samples=3))
    assert (forward, backward) == (3 * 2 * 5 + 4, 3 * 2 * 4)


# what it finds


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_few_classes_are_attacked_like_many(classes, version):
    network, images = random_linear(classes, 72), middle_images(20, 2, 6, 6, spread=0.1)
    labels = network(images).argmax(dim=1)
    # on a linear network all that lies within eps of another class is broken
    logits, weight = network(images).detach(), network.weight.detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    distances = gaps / (weight[labels][:, None] - weight).abs().sum(dim=2)
    distances[torch.arange(20), labels] = torch.inf
    distance = distances.min(dim=1).values
    eps = distance.sort().values[9:11].mean().item()
    found = ShortAutoAttack(eps, version=version)(network, images, labels)
    assert torch.equal(right(network, found, labels), distance > eps)


def test_its_ledger_names_the_parts_of_the_version(digits):
    network, images, labels = digits
    for version in ("standard", "rand"):
        attack, surrogate = ShortAutoAttack(0.1, version=version), FullGradient(network)
        attack(surrogate, images[:5], labels[:5])
        assert {name.partition("/")[0] for name in surrogate.ledger} == {"broken_by", *attack.parts()}


def test_a_search_in_bfloat16_gives_the_verdicts_of_float32(digits):
    network, images, labels = digits
    attack, verdicts = ShortAutoAttack(0.06), []
    for dtype in (torch.float32, torch.bfloat16):
        surrogate = FullGradient(network)
        surrogate.search_dtype = dtype
        found = attack(surrogate, images, labels)
        verdicts.append(right(network, found, labels))
        # what the ledger calls broken is broken in float32
        assert torch.equal(verdicts[-1], surrogate.ledger["broken_by"] == -1)
    assert (verdicts[0] != verdicts[1]).sum() <= 1
    assert 10 < verdicts[0].sum() < 50


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("linf", 0.1), ("l2", 0.4)])
def test_robust_accuracy_is_that_of_the_reference_implementation(digits, norm, eps):
    reference = pytest.importorskip("pyautoattack")
    network, images, labels = digits
    ours = right(network, AutoAttack(eps, norm)(network, images, labels), labels)
    theirs = reference.AutoAttack(network, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0)
    found, *_ = theirs.run_standard_evaluation(images, labels, batch_size=60)
    assert (ours != right(network, found, labels)).sum() <= 1


def test_random_numbers_belong_to_the_image(digits):
    network, images, labels = digits
    attack, rng = ShortAutoAttack(0.06), SampleRNG.for_images(torch.arange(60), seed=3)
    whole = right(network, attack(network, images, labels, rng), labels)
    later = slice(40, 60)
    part = right(network, attack(network, images[later], labels[later], rng[later]), labels[later])
    assert torch.equal(part, whole[later])


def test_a_network_that_gives_nan_is_refused():
    network = seeded(make_network).eval()
    with torch.no_grad():
        network[-1].bias[1] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        ShortAutoAttack(0.05)(network, middle_images(2, 2, 6, 6), torch.zeros(2, dtype=torch.int64))
