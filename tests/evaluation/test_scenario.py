"""Names of scenarios are keys of the result file."""

import pytest

from lightning_advdef.attacks import FGSM
from lightning_advdef.evaluation import Scenario


@pytest.mark.parametrize("name", ["", "a b", "a/b", "clean"])
def test_names_that_would_spoil_the_result_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        Scenario(name, FGSM(0.1))
