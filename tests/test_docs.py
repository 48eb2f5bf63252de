"""The pages name what exists."""

import re

import pytest

from lightning_advdef import attacks
from tests.attacks.helpers import EXPORTED
from tests.conftest import ROOT
from tests.test_configs import CONFIGS, parsed, scenarios_of

PAGE = (ROOT / "docs" / "attacks.md").read_text()
ROWS = {name: line for line in PAGE.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)", line)}


@pytest.mark.parametrize("attack", EXPORTED)
def test_every_attack_has_a_row(attack):
    assert attack.__name__ in ROWS


@pytest.mark.parametrize("attack", [attack for attack in EXPORTED if "eps" in attack.__dataclass_fields__])
def test_row_names_the_norms_of_the_attack(attack):
    row = ROWS[attack.__name__]
    if "of its" not in row:
        assert ", ".join(attack.norms) in row


@pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD", "MIM", "APGD", "TargetedAPGD", "Square", "CarliniWagnerLinf"])
def test_row_states_the_passes(name):
    cost = getattr(attacks, name)(eps=0.1).cost(classes=10)
    assert f"{cost.forward} + {cost.backward}" in ROWS[name]


def test_every_surrogate_has_a_row():
    surrogates = ["FullGradient", "Undefended", "BPDA", "Unrolled", "PurifierGradient", "EOT", "Transfer"]
    assert all(name in ROWS for name in surrogates)


def test_scenarios_on_the_page_of_figures_are_read(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "figures.md").read_text(), re.DOTALL)
    (tmp_path / "strength.yaml").write_text(block)
    found = scenarios_of(parsed(CONFIGS / "standard" / "mnist.yaml", tmp_path / "strength.yaml"))
    assert [entry["name"] for entry in found] == re.findall(r"name: (\w[\w.]*)", block)
    assert found[-1]["attack"]["init_args"]["start"]["class_path"].endswith("GeneratorAttack")
