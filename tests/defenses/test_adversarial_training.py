import functools

import pytest

from lightning_advdef.attacks import AutoAttack
from lightning_advdef.defenses import AdversarialTrainingModule
from lightning_advdef.models import MLP


def test_an_attack_made_of_parts_is_refused():
    with pytest.raises(ValueError, match="adversarial training cannot use AutoAttack, which is made of parts"):
        AdversarialTrainingModule(functools.partial(MLP, hidden=[4]), AutoAttack(0.1), spec="digits")
