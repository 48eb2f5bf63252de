"""The pages name what exists."""

import re

import pytest

from lightning_advdef import attacks
from tests.attacks.helpers import EXPORTED
from tests.conftest import ROOT

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
    surrogates = ["FullGradient", "Undefended", "BPDA", "EOT", "Transfer"]
    assert all(name in ROWS for name in surrogates)
