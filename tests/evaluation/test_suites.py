"""A suite read in Python is the one that the command line reads."""

import pytest
from torch import nn

from lightning_advdef.attacks import EOT, FGSM, DeepFool
from lightning_advdef.evaluation.suites import SUITES, read_scenarios
from tests.test_configs import parsed, scenarios_of


def test_a_suite_is_found_by_its_name_and_by_its_path():
    assert (
        read_scenarios("quick") == read_scenarios(SUITES / "quick.yaml") == read_scenarios(str(SUITES / "quick.yaml"))
    )


def test_it_has_the_scenarios_of_the_command_line():
    path = SUITES / "adaptive_short.yaml"
    experiment = SUITES.parent / "standard" / "mnist.yaml"
    found, expected = read_scenarios(path), scenarios_of(parsed(experiment, path))
    assert [scenario.name for scenario in found] == [entry["name"] for entry in expected]
    assert [scenario.attack.eps for scenario in found] == [entry["attack"]["init_args"]["eps"] for entry in expected]
    surrogate = found[3].bind(nn.Linear(1, 1))
    assert (type(surrogate), surrogate.draws) == (EOT, 4)


def test_an_experiment_has_scenarios_too():
    first, *_, last = read_scenarios(SUITES.parent / "deep_defense" / "mnist.yaml")
    assert isinstance(first.attack, DeepFool)
    assert last.attack == FGSM(eps=0.2233)


def test_what_is_no_suite_is_refused_with_the_names_of_all():
    with pytest.raises(ValueError, match=r"there is no suite 'quik': .* autoattack, .*quick"):
        read_scenarios("quik")


@pytest.mark.parametrize("text", ["", "evaluation:", "- 1", "evaluation: {draws: 2}"])
def test_a_file_without_scenarios_is_refused(tmp_path, text):
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"suite\.yaml has no scenarios under evaluation"):
        read_scenarios(tmp_path / "suite.yaml")


def test_a_mistake_in_a_scenario_is_named(tmp_path):
    (tmp_path / "suite.yaml").write_text("evaluation: {scenarios: [{name: a, attack: {class_path: NoAttack}}]}")
    with pytest.raises(ValueError, match=r"suite.yaml: .*NoAttack"):
        read_scenarios(tmp_path / "suite.yaml")
