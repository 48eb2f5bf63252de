"""What is to be run next can be pasted and is read by the command line."""

import functools
from dataclasses import replace

import pytest
import torch
import yaml

from lightning_advdef.attacks import APGD, BPDA, EOT, FGSM, PGD, Cascade, DeepFool, FullGradient, Square
from lightning_advdef.checkpoints import plain
from lightning_advdef.evaluation import Scenario
from lightning_advdef.evaluation.diagnostics import suggestion
from lightning_advdef.evaluation.diagnostics.diagnose import diagnose
from lightning_advdef.evaluation.diagnostics.probes import Probes
from lightning_advdef.evaluation.suites import read_scenarios
from lightning_advdef.models import MLP
from tests.evaluation.diagnostics.helpers import COUNT, evidence
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


def test_an_attack_of_a_configuration_is_made_longer_through_its_surrogate(tmp_path):
    surrogate = {"class_path": "EOT", "init_args": {"samples": 3, "of": "BPDA"}}
    attack = {"class_path": "PGD", "init_args": {"eps": 0.1, "steps": 10}}
    row = {"name": "a", "attack": attack, "surrogate": surrogate}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"evaluation": {"scenarios": [row]}}))
    (entry,) = yaml.safe_load(suggestion.longer("check", *read_scenarios(tmp_path / "suite.yaml")))
    assert entry["attack"]["init_args"]["steps"] > 10
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump({"evaluation": {"scenarios": [entry]}}))
    (longer,) = read_scenarios(tmp_path / "longer.yaml")
    assert plain(longer.surrogate) == plain(read_scenarios(tmp_path / "suite.yaml")[0].surrogate)


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


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_run_under_another_name_is_not_asked_for(kind, tmp_path):
    for make in MAKERS:
        text = make(defended(kind), "check", SCENARIOS[0])
        (tmp_path / "next.yaml").write_text(yaml.safe_dump({"evaluation": {"scenarios": yaml.safe_load(text)}}))
        (asked,) = read_scenarios(tmp_path / "next.yaml")
        found = defended(kind)
        assert not suggestion.was_run(found, text)
        for row, run in ((asked, True), (replace(asked, attack=asked.attack.with_eps(0.2)), False)):
            again = evidence([replace(row, name="mine")], defense=found.judge.defense, stochastic=found.stochastic)
            assert suggestion.was_run(again, text) is run


def test_an_attack_that_was_run_through_another_surrogate_is_asked_for():
    text = suggestion.by_margin(defended("plain"), "check", SCENARIOS[0])
    for surrogate, run in ((FullGradient, True), (lambda defense: BPDA(defense), False)):
        row = Scenario("mine", APGD(0.1, loss="margin", restarts=5), surrogate)
        assert suggestion.was_run(evidence([row]), text) is run


def test_one_attack_is_not_asked_for_twice_under_two_names():
    defense = RoundedInput(DIGITS, spec="digits")
    rows = [Scenario("fgsm", FGSM(0.1)), Scenario("pgd10", PGD(0.1, steps=10))]
    zero = {f"{row.name}/zero_gradients": torch.ones(COUNT, dtype=torch.int64) for row in rows}
    found = evidence(rows, defense=defense, **zero)
    text = diagnose(found.rows, found.summary, found.judge, None)[5]["next"]
    assert suggestion.name_of(text) == "next_zero_gradients_fgsm"
    found = evidence([*rows, Scenario("next_zero_gradients_fgsm", Square(0.1, queries=5000))], defense=defense, **zero)
    said = [f for f in diagnose(found.rows, found.summary, found.judge, None) if f["name"] == "zero_gradients"]
    assert [(f["status"], f["next"]) for f in said] == [("raised", "")] * 2


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
