"""Planted defenses are found out, sound networks are left in peace."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.diagnostics.digits import digits, perceptron, trained
from benchmarks.diagnostics.planted import (
    PLANTED,
    Cold,
    Detached,
    RandomResize,
    SaturatedLogits,
    Shattered,
    SignQuantised,
)
from lightning_advdef.attacks import FGSM, PGD, Square
from lightning_advdef.data import get_spec
from lightning_advdef.defenses import StandardModule
from lightning_advdef.evaluation import Scenario, evaluate
from lightning_advdef.evaluation.diagnostics.diagnose import CHECKS
from lightning_advdef.models import MLP
from tests.conftest import GOLDEN, ROOT, raised

EPS, COUNT = 0.1, 60
SUITE = [
    Scenario("fgsm", FGSM(EPS)),
    Scenario("pgd", PGD(EPS, steps=20)),
    Scenario("longer", PGD(EPS, steps=40)),
    Scenario("square", Square(EPS, queries=100)),
]
KEYS = {"name", "status", "scenario", "measured", "threshold", "unit", "meaning", "next"}
FITTING = {
    SignQuantised: {"zero_gradients", "images_untouched"},
    SaturatedLogits: {"zero_gradients", "images_untouched"},
    Cold: {"zero_gradients", "images_untouched"},
    Detached: {"zero_gradients", "images_untouched", "huge_budget_survived"},
    RandomResize: {"random_without_eot", "gradient_uncorrelated"},
    Shattered: {"huge_budget_survived"},
}


def diagnosed(network, suite=SUITE):
    images, labels, _ = (tensor[:COUNT] for tensor in digits("test"))
    torch.manual_seed(0)
    return evaluate(network, images, labels, suite).result


def plain():
    network = MLP(get_spec("digits"), hidden=[32])
    state = load_file(GOLDEN / "digits_mlp.safetensors")
    network.load_state_dict({name.removeprefix("classifier."): value for name, value in state.items()})
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return plain()


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_defense_is_found_out(network, planted):
    assert raised(diagnosed(planted(network))).keys() >= FITTING[planted]


def test_a_plain_network_raises_nothing(network):
    found = diagnosed(network)
    assert raised(found) == {}
    assert found["scenarios"][1]["robust_accuracy"]["value"] < 0.7 < found["clean_accuracy"]["value"]


def test_a_network_trained_on_adversarial_images_raises_nothing():
    torch.manual_seed(1)
    found = diagnosed(trained(perceptron(64, nn.ReLU), robust=True, epochs=8))
    assert raised(found) == {}
    assert found["scenarios"][1]["robust_accuracy"]["value"] > 0.5


def test_every_check_says_something_in_plain_values(network):
    found = diagnosed(network, SUITE[:1])["diagnostics"]
    assert len(found) == len(CHECKS) == len({finding["name"] for finding in found})
    assert all(finding.keys() == KEYS for finding in found)
    assert {finding["status"] for finding in found} == {"clear", "unmeasured"}


def test_the_page_explains_every_check_with_its_threshold():
    page = (ROOT / "docs" / "diagnostics.md").read_text()
    assert [line.strip("# `") for line in page.splitlines() if line.startswith("### `")] == [
        check.__name__ for check in CHECKS
    ]
    module = StandardModule(lambda spec: MLP(spec, hidden=[4]), spec="digits")
    for finding in diagnosed(module.eval(), SUITE[:1])["diagnostics"]:
        (paragraph,) = [part for part in page.split("\n### ") if part.startswith(f"`{finding['name']}`")]
        assert finding["unit"] in " ".join(paragraph.split())
