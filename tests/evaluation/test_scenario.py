"""Names of scenarios are keys of the result file; adaptive ones become one row per surrogate of the defense."""

import functools
import json

import pytest
import yaml
from torch import nn

from lightning_advdef.__main__ import run
from lightning_advdef.attacks import FGSM, PGD, Cascade, DeepFool, FullGradient, Noise, Square, Undefended
from lightning_advdef.evaluation import Scenario, expand
from tests.conftest import result_of, scenario

ATTACK = FGSM(0.1)
DIGITS = ["--model=StandardModule", "--model.network=MLP", "--data=Digits"]


class Adaptive(nn.Module):
    """A defense that names the surrogates it is given."""

    stochastic = False

    def __init__(self, **entries):
        super().__init__()
        self.entries = entries

    def adaptive_surrogates(self):
        return self.entries


@pytest.mark.parametrize("name", ["", "a b", "a/b", "clean"])
def test_names_that_would_spoil_the_result_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        Scenario(name, FGSM(0.1))


def test_an_adaptive_scenario_becomes_one_row_per_surrogate_of_the_defense():
    defense = Adaptive(whole=FullGradient, bare=Undefended)
    scenarios = [Scenario("before", ATTACK), Scenario("suite", ATTACK, "adaptive"), Scenario("after", ATTACK)]
    rows = expand(scenarios, defense)
    assert [row.name for row in rows] == ["before", "suite/whole", "suite/bare", "after"]
    assert [type(row.bind(defense)) for row in rows] == [FullGradient, FullGradient, Undefended, FullGradient]
    assert all(row.attack is ATTACK for row in rows)


@pytest.mark.parametrize("defense", [Adaptive(), nn.Identity()], ids=["defense", "network"])
def test_a_defense_that_names_none_is_attacked_through_its_full_gradient(defense):
    (row,) = expand([Scenario("suite", ATTACK, "adaptive")], defense)
    assert row == Scenario("suite", ATTACK)
    assert type(row.bind(defense)) is FullGradient


@pytest.mark.parametrize(("random", "draws"), [(True, 4), (False, 1)])
def test_the_full_gradient_of_a_random_defense_that_names_none_is_averaged(random, draws):
    defense = Adaptive()
    defense.stochastic = random
    (row,) = expand([Scenario("suite", ATTACK, "adaptive", samples=4)], defense)
    surrogate = row.bind(defense)
    assert (row.name, surrogate.draws, surrogate.access) == ("suite", draws, "white")


def test_expanding_twice_changes_nothing():
    defense = Adaptive(whole=FullGradient)
    rows = expand([Scenario("suite", ATTACK, "adaptive"), Scenario("gray", ATTACK, Undefended)], defense)
    assert expand(rows, defense) == rows


def test_two_rows_of_one_name_are_refused():
    with pytest.raises(ValueError, match="named 'suite/a'"):
        expand([Scenario("suite", ATTACK, "adaptive")] * 2, Adaptive(a=FullGradient))


def test_an_entry_whose_name_would_spoil_the_result_is_refused():
    with pytest.raises(ValueError, match="name"):
        expand([Scenario("suite", ATTACK, "adaptive")], Adaptive(**{"a b": FullGradient}))


@pytest.mark.parametrize(
    "rows",
    [
        [Scenario("large", FGSM(0.2), after="small")],
        [Scenario("large", FGSM(0.2), after="small"), Scenario("small", FGSM(0.1))],
        [Scenario("small", FGSM(0.2)), Scenario("large", FGSM(0.1), after="small")],
        [Scenario("small", FGSM(0.1, "l2")), Scenario("large", FGSM(0.2), after="small")],
        [Scenario("small", DeepFool()), Scenario("large", FGSM(0.2), after="small")],
    ],
    ids=["missing", "later", "larger", "other norm", "no budget"],
)
def test_after_names_an_earlier_row_of_a_smaller_budget(rows):
    with pytest.raises(ValueError, match="large: after takes the name of an earlier scenario of a smaller budget"):
        expand(rows, nn.Identity())
    assert len(expand([Scenario("small", FGSM(0.1)), Scenario("large", FGSM(0.2), after="small")], nn.Identity())) == 2


def test_a_scenario_that_was_not_expanded_is_not_run():
    with pytest.raises(ValueError, match="expand"):
        Scenario("suite", ATTACK, "adaptive").bind(Adaptive(a=FullGradient))


def test_the_command_line_attacks_with_each_adaptive_surrogate(advdef):
    scenarios = [scenario("suite", "PGD", surrogate="adaptive", eps=0.2, steps=3), scenario("white", "FGSM", eps=0.2)]
    summary, rows = result_of(advdef.digits("test", "--model=tests.toys.KnownRounding", scenarios=scenarios))
    found = [(row["name"], row["surrogate"], row["access"]) for row in summary["scenarios"]]
    assert found == [("suite/bpda", "BPDA", "bpda"), ("suite/eot2", "EOT", "bpda"), ("white", "FullGradient", "white")]
    assert summary["scenarios"][1]["surrogate_settings"]["samples"] == 2
    assert (rows["suite/eot2/backward"] == 6).all()


def test_the_saved_configuration_keeps_the_word_adaptive(capsys):
    scenarios = [scenario("suite", "FGSM", surrogate="adaptive", eps=0.2), scenario("gray", "FGSM", eps=0.2)]
    with pytest.raises(SystemExit):
        run(["test", *DIGITS, "--evaluation.scenarios", json.dumps(scenarios), "--print_config"])
    suite, gray = yaml.safe_load(capsys.readouterr().out)["evaluation"]["scenarios"]
    assert suite["surrogate"] == "adaptive"
    assert "FullGradient" in str(gray["surrogate"])


def test_settings_of_a_surrogate_may_be_bound():
    factory = functools.partial(Undefended)
    assert type(Scenario("a", ATTACK, factory).bind(nn.Identity())) is Undefended


@pytest.mark.parametrize(
    ("attack", "few"),
    [
        (FGSM(0.1), True),
        (PGD(0.1, steps=9), True),
        (PGD(0.1, steps=10), False),
        (Square(0.1, queries=1), False),
        (Noise(0.1), False),
        (Cascade(attacks={"fgsm": FGSM(0.1), "square": Square(0.1)}), False),
        (Cascade(attacks={"fgsm": FGSM(0.1), "pgd": PGD(0.1, steps=5)}), True),
    ],
)
def test_an_attack_of_fewer_than_ten_gradients_takes_few(attack, few):
    assert Scenario("a", attack).takes_few_gradients(classes=10) == few
