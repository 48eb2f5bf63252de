"""What is to be run next can be pasted and is read by the command line."""

import functools

import pytest
import yaml

from lightning_advdef.attacks import BPDA, EOT, PGD, Cascade, DeepFool, FullGradient
from lightning_advdef.evaluation import Scenario
from lightning_advdef.evaluation.diagnostics import suggestion
from lightning_advdef.evaluation.diagnostics.diagnose import diagnose
from lightning_advdef.evaluation.diagnostics.probes import Probes
from lightning_advdef.evaluation.suites import read_scenarios
from lightning_advdef.models import MLP
from tests.evaluation.diagnostics.helpers import evidence
from tests.test_configs import CONFIGS, parsed, scenarios_of
from tests.toys import KnownRounding, NoisyInput, RoundedInput

DIGITS = functools.partial(MLP, hidden=[8])
SCENARIOS = [
    Scenario("linf", PGD(0.1, steps=7)),
    Scenario("l1", PGD(3, norm="l1")),
    Scenario("df", DeepFool()),
]
MAKERS = [
    suggestion.knowing,
    suggestion.averaged_over_draws,
    suggestion.by_scores,
    suggestion.by_margin,
]


def defended(kind):
    part = Probes("", *[None] * 7, has_test_time_part=True)
    return {
        "plain": lambda: evidence(SCENARIOS),
        "random": lambda: evidence(SCENARIOS, defense=NoisyInput(DIGITS, spec="digits"), stochastic=True),
        "unnamed": lambda: evidence(SCENARIOS, defense=RoundedInput(DIGITS, spec="digits"), probes=part),
        "named": lambda: evidence(SCENARIOS, defense=KnownRounding(DIGITS, spec="digits")),
        "named random": lambda: evidence(SCENARIOS, defense=KnownRounding(DIGITS, spec="digits"), stochastic=True),
    }[kind]()


def everything(kind):
    found, number = defended(kind), iter(range(100))
    for scenario in SCENARIOS:
        for make in MAKERS:
            if text := make(found, f"check{next(number)}", scenario):
                yield text
    yield suggestion.noise(found, "noise")
    yield suggestion.gradient_attack(found, "gradients")
    yield suggestion.longer("longer", SCENARIOS[0])
    yield suggestion.longer("averaged", Scenario("eot", PGD(0.1), functools.partial(EOT, of=FullGradient, samples=3)))


KINDS = ["plain", "random", "unnamed", "named", "named random"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_them_are_scenarios(kind, tmp_path):
    entries = [yaml.safe_load(text)[0] for text in everything(kind)]
    (tmp_path / "next.yaml").write_text(yaml.safe_dump({"evaluation": {"scenarios+": entries}}))
    assert [scenario.name for scenario in read_scenarios(tmp_path / "next.yaml")] == [e["name"] for e in entries]


def test_pasted_lines_are_read_by_the_command_line(tmp_path):
    lines = "".join(text for kind in KINDS[:1] for text in everything(kind))
    indented = "".join(f"    {line}\n" for line in lines.splitlines())
    (tmp_path / "next.yaml").write_text(f"evaluation:\n  scenarios+:\n{indented}")
    found = scenarios_of(parsed(CONFIGS / "standard" / "mnist.yaml", tmp_path / "next.yaml"))
    assert found[0]["attack"]["class_path"].endswith("Square")


def test_budget_and_norm_are_those_of_the_scenario():
    (entry,) = yaml.safe_load(suggestion.knowing(defended("plain"), "check", SCENARIOS[0]))
    assert entry["attack"]["init_args"]["eps"] == 0.1
    assert entry["attack"]["init_args"]["norm"] == "linf"


def test_a_random_defense_is_attacked_over_draws():
    (entry,) = yaml.safe_load(suggestion.knowing(defended("random"), "check"))
    assert entry["surrogate"] == {"class_path": "EOT", "init_args": {"samples": 20}}


def test_a_test_time_part_without_surrogates_is_attacked_around():
    (entry,) = yaml.safe_load(suggestion.knowing(defended("unnamed"), "check"))
    assert entry["surrogate"] == "BPDA"


def test_an_attack_without_steps_cannot_be_made_longer():
    assert suggestion.longer("check", Scenario("all", Cascade(attacks={"pgd": PGD(0.1)}))) == ""


def test_what_is_suggested_for_an_l1_budget_stays_in_it():
    (entry,) = yaml.safe_load(suggestion.knowing(defended("plain"), "check", SCENARIOS[1]))
    assert entry["attack"]["init_args"]["norm"] == "l1"
    assert suggestion.by_scores(defended("plain"), "check", SCENARIOS[1]) == ""


@pytest.mark.parametrize("surrogate", [lambda defense: BPDA(defense), functools.partial(EOT, of=lambda d: BPDA(d))])
def test_an_attack_through_a_function_cannot_be_made_longer(surrogate):
    assert suggestion.longer("check", Scenario("pgd", PGD(0.1), surrogate)) == ""


def test_what_was_just_run_is_not_asked_for():
    name = suggestion.named("black_box_stronger")
    for extra in ([], [Scenario(name, PGD(0.1, steps=9))], [Scenario(name, PGD(0.1, steps=9), eps=[0.1, 0.2])]):
        found = evidence([SCENARIOS[0], *extra])
        asked = {suggestion.name_of(f["next"]) for f in diagnose(found.rows, found.summary, found.judge, None)}
        assert (name in asked) == (not extra)


def test_surrogates_that_are_functions_count_as_named():
    class Named(KnownRounding):
        def adaptive_surrogates(self):
            return {"mine": lambda defense: FullGradient(defense)}

    found = evidence([Scenario("pgd", PGD(0.1), "adaptive")], defense=Named(DIGITS, spec="digits"))
    assert found.has_test_time_part
    assert found.knows_the_defense(found.judge.scenarios[0], "white")
    assert not found.knows_the_defense(Scenario("other", PGD(0.1)), "white")
    (entry,) = yaml.safe_load(suggestion.knowing(found, "check"))
    assert entry["surrogate"] == "adaptive"
