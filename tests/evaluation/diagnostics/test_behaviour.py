"""Whether the evaluation suits the defense."""

import functools

import pytest
import yaml

from lightning_advdef.attacks import (
    BPDA,
    EOT,
    FGSM,
    PGD,
    AutoAttack,
    DeepFool,
    FullGradient,
    Noise,
    Square,
    Transfer,
    Undefended,
)
from lightning_advdef.evaluation import Scenario
from lightning_advdef.evaluation.diagnostics.behaviour import (
    minimal_norm_of_random,
    no_adaptive_attack,
    noise_flips,
    random_without_eot,
    runs_capped,
)
from lightning_advdef.evaluation.suites import read_scenarios
from lightning_advdef.models import MLP
from tests.evaluation.diagnostics.helpers import evidence
from tests.toys import KnownRounding, NoisyInput

DIGITS = functools.partial(MLP, hidden=[8])


def known():
    return KnownRounding(DIGITS, spec="digits")


def status(check, scenarios, **settings):
    (found,) = check(evidence(scenarios, **settings))
    return found.status


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [
        (FullGradient, "raised"),
        (Undefended, "raised"),
        (functools.partial(EOT, samples=2), "raised"),
        (BPDA, "clear"),
        (functools.partial(EOT, of=BPDA, samples=2), "clear"),
        ("adaptive", "clear"),
    ],
)
def test_a_defense_that_names_surrogates_wants_one_that_fits(surrogate, expected):
    assert status(no_adaptive_attack, [Scenario("a", PGD(0.1), surrogate)], defense=known()) == expected


@pytest.mark.parametrize(
    ("surrogate", "of_plain", "of_known"),
    [
        ("FullGradient", True, False),
        ("Undefended", False, False),
        ("BPDA", True, True),
        ("{class_path: EOT, init_args: {samples: 2}}", True, False),
        ("{class_path: EOT, init_args: {samples: 2, of: Undefended}}", False, False),
        ("{class_path: EOT, init_args: {samples: 2, of: BPDA}}", True, True),
    ],
)
def test_surrogates_of_a_configuration_count_as_those_of_python_do(tmp_path, surrogate, of_plain, of_known):
    (tmp_path / "suite.yaml").write_text(
        "evaluation: {scenarios: [{name: a, attack: {class_path: PGD, init_args: {eps: 0.1}}, surrogate: "
        + surrogate
        + "}]}"
    )
    scenarios = read_scenarios(tmp_path / "suite.yaml")
    for defense, expected in ((NoisyInput(DIGITS, spec="digits"), of_plain), (known(), of_known)):
        found = evidence(scenarios, defense=defense)
        ((scenario, summary),) = found.scenarios
        assert found.knows_the_defense(scenario, summary["access"]) == expected


def test_what_is_next_names_the_surrogates_of_the_defense():
    (found,) = no_adaptive_attack(evidence([Scenario("a", PGD(0.2))], defense=known()))
    (entry,) = yaml.safe_load(found.next)
    assert entry["surrogate"] == "adaptive"
    assert entry["attack"]["init_args"]["eps"] == 0.2


@pytest.mark.parametrize("settings", [{}, {"parts": "denoiser"}])
def test_images_of_another_network_are_no_adaptive_attack(settings):
    class Named(KnownRounding):
        def adaptive_surrogates(self):
            return {"denoised": functools.partial(Transfer, parts="denoiser")}

    scenario = Scenario("a", PGD(0.1), functools.partial(Transfer, **settings))
    found = evidence([Scenario("b", PGD(0.1))], defense=Named(DIGITS, spec="digits"))
    assert not found.knows_the_defense(scenario, "transfer")


def test_queries_are_no_adaptive_attack():
    assert status(no_adaptive_attack, [Scenario("a", Square(0.1), BPDA)], defense=known()) == "raised"


GRAY = Scenario("gray", PGD(0.1), Undefended)


@pytest.mark.parametrize(
    ("attack", "others", "expected"),
    [
        (FGSM(0.1), [GRAY], "raised"),
        (PGD(0.1, steps=2), [], "raised"),
        (PGD(0.0), [], "raised"),
        (PGD(0.001), [GRAY], "raised"),
        (PGD(0.001), [], "clear"),
        (PGD(0.1), [GRAY], "clear"),
        (PGD(0.1), [GRAY, Scenario("more", PGD(0.3), Undefended)], "clear"),
        (PGD(0.1), [Scenario("noise", Noise(0.3))], "clear"),
        (PGD(0.1), [Scenario("l2", PGD(2.0, norm="l2"), Undefended)], "clear"),
        (DeepFool(), [GRAY], "clear"),
    ],
)
def test_an_attack_for_show_is_no_adaptive_attack(attack, others, expected):
    (found,) = no_adaptive_attack(evidence([*others, Scenario("a", attack, BPDA)], defense=known()))
    assert found.status == expected
    assert ("only a weak attack was made for it" in found.meaning) == (expected == "raised")


@pytest.mark.parametrize(
    ("attack", "expected"), [(FGSM(0.1), "raised"), (PGD(0.0), "raised"), (PGD(0.01), "raised"), (PGD(0.1), "clear")]
)
def test_an_attack_for_show_averages_over_no_draws(attack, expected):
    averaged = Scenario("a", attack, functools.partial(EOT, samples=4))
    noisy = NoisyInput(DIGITS, spec="digits")
    found = random_without_eot(evidence([Scenario("one", PGD(0.1)), averaged], defense=noisy, stochastic=True))
    assert [finding.status for finding in found] == [expected]
    assert found[0].measured == (4 if expected == "clear" else 1)
    assert ("only a weak attack averages" in found[0].meaning) == (expected == "raised")


@pytest.mark.parametrize(
    ("attack", "surrogate", "expected"),
    [
        (PGD(0.1), FullGradient, "raised"),
        (PGD(0.1), functools.partial(EOT, samples=4), "clear"),
        (AutoAttack(0.1, version="rand"), FullGradient, "clear"),
        (PGD(0.1), Undefended, "raised"),
    ],
)
def test_a_random_defense_wants_the_mean_over_draws(attack, surrogate, expected):
    noisy = NoisyInput(DIGITS, spec="digits")
    scenarios = [Scenario("a", attack, surrogate)]
    assert status(random_without_eot, scenarios, defense=noisy, stochastic=True) == expected


def test_a_defense_that_repeats_itself_needs_no_draws():
    assert status(random_without_eot, [Scenario("a", PGD(0.1))]) == "clear"


def test_the_smallest_norm_on_a_random_defense_is_doubtful():
    assert status(minimal_norm_of_random, [Scenario("a", DeepFool())], stochastic=True) == "raised"
    assert status(minimal_norm_of_random, [Scenario("a", DeepFool())]) == "clear"
    assert status(minimal_norm_of_random, [Scenario("a", PGD(0.1))], stochastic=True) == "clear"


def test_runs_that_were_cut_off_are_raised_where_it_happened():
    found = evidence([Scenario("a", PGD(0.1))])
    assert runs_capped(found)[0].status == "clear"
    found.summary["defense_capped"] = 0.0
    found.summary["scenarios"][0]["defense_capped"] = 0.25
    (capped,) = runs_capped(found)
    assert (capped.status, capped.scenario, capped.measured) == ("raised", "a", 0.25)


def test_without_probes_what_they_measure_is_unmeasured():
    assert status(noise_flips, [Scenario("a", PGD(0.1))]) == "unmeasured"
