"""Attacks against each other, with answers made by hand."""

import pytest
import torch
import yaml

from lightning_advdef.attacks import APGD, BPDA, FGSM, PGD, Cascade, FullGradient, Noise, Square, Undefended
from lightning_advdef.evaluation import Scenario
from lightning_advdef.evaluation.diagnostics.comparisons import (
    black_box_stronger,
    families,
    more_steps_weaker,
    not_converged,
    query_part_gains,
    single_step_stronger,
)
from lightning_advdef.models import MLP
from tests.evaluation.diagnostics.helpers import evidence, right, said
from tests.toys import RoundedInput

PGD20, PGD100 = Scenario("pgd20", PGD(0.1, steps=20)), Scenario("pgd100", PGD(0.1, steps=100))
SQUARE = Scenario("square", Square(0.1, queries=100))
SINGLE = Scenario("fgsm", FGSM(0.1))


def test_scores_that_break_more_than_gradients_are_raised_for_the_white_box():
    (found,) = black_box_stronger(evidence([PGD20, SQUARE], {"pgd20": 70, "square": 50}))
    assert (found.status, found.scenario, found.measured) == ("raised", "pgd20", 0.2)
    assert found.meaning.startswith("square breaks images that pgd20 does not")


def test_a_black_box_that_is_ahead_by_chance_is_clear():
    one_more = right(70)
    one_more[70:73] = 1
    one_more[:5] = 0
    assert said(black_box_stronger(evidence([PGD20, SQUARE], {"pgd20": 70, "square": one_more}))) == [
        ("clear", "pgd20")
    ]


def test_noise_and_the_bare_classifier_are_black_boxes():
    noise, gray = Scenario("noise", Noise(0.1)), Scenario("gray", PGD(0.1), Undefended)
    found = black_box_stronger(evidence([PGD20, noise, gray], {"pgd20": 90, "noise": 40, "gray": 50}))
    assert said(found) == [("raised", "pgd20")] * 2


def test_black_boxes_are_held_against_the_strongest_white_box_of_their_budget():
    weak, other = Scenario("weak", PGD(0.1, steps=10)), Scenario("other", PGD(0.2))
    found = black_box_stronger(
        evidence([weak, PGD20, other, SQUARE], {"weak": 90, "pgd20": 40, "other": 95, "square": 50})
    )
    assert said(found) == [("clear", "pgd20")]


def test_a_single_step_is_no_white_box_to_compare_with():
    (found,) = black_box_stronger(evidence([SINGLE, SQUARE], {"fgsm": 90, "square": 50}))
    assert found.status == "unmeasured"
    assert yaml.safe_load(found.next)[0]["attack"]["class_path"] == "APGD"


def test_a_cascade_with_queries_is_no_white_box_to_compare_with():
    cascade = Scenario("all", Cascade(attacks={"pgd": PGD20.attack, "square": SQUARE.attack}))
    assert black_box_stronger(evidence([cascade, SQUARE]))[0].status == "unmeasured"


def test_a_single_step_that_breaks_more_is_raised():
    assert said(single_step_stronger(evidence([SINGLE, PGD20], {"fgsm": 40, "pgd20": 60}))) == [("raised", "pgd20")]
    assert said(single_step_stronger(evidence([SINGLE, PGD20], {"fgsm": 60, "pgd20": 40}))) == [("clear", "pgd20")]


def test_a_single_step_through_another_surrogate_is_not_compared():
    through = Scenario("fgsm", FGSM(0.1), BPDA)
    found = single_step_stronger(
        evidence([through, PGD20], {"fgsm": 40, "pgd20": 60}, RoundedInput(MLP, spec="digits"))
    )
    assert found[0].status == "unmeasured"


def test_more_steps_that_break_fewer_are_raised():
    assert said(more_steps_weaker(evidence([PGD20, PGD100], {"pgd20": 50, "pgd100": 65}))) == [("raised", "pgd100")]
    assert said(more_steps_weaker(evidence([PGD20, PGD100], {"pgd20": 65, "pgd100": 50}))) == [("clear", "pgd100")]


def test_steps_that_still_gain_are_raised_with_more_of_them():
    (found,) = not_converged(evidence([PGD20, PGD100], {"pgd20": 65, "pgd100": 50}))
    assert (found.status, found.scenario) == ("raised", "pgd100")
    (entry,) = yaml.safe_load(found.next)
    assert entry["attack"] == {"class_path": "PGD", "init_args": {"eps": 0.1, "steps": 500}}


def test_a_gain_of_one_image_in_a_hundred_is_convergence():
    assert said(not_converged(evidence([PGD20, PGD100], {"pgd20": 51, "pgd100": 50}))) == [("clear", "pgd100")]


def test_only_steps_and_restarts_make_a_family():
    margin, restarts = (
        Scenario("margin", PGD(0.1, steps=50, loss="margin")),
        Scenario("two", PGD(0.1, steps=20, restarts=2)),
    )
    other = Scenario("larger", PGD(0.2, steps=50))
    apgd = Scenario("apgd", APGD(0.1, steps=50))
    found = families(evidence([PGD100, margin, PGD20, restarts, other, apgd]))
    assert [[scenario.name for scenario in family] for family in found] == [["pgd20", "two", "pgd100"]]


def test_of_step_sizes_the_strongest_stands_for_its_length():
    fine = Scenario("fine", PGD(0.1, steps=20, step_size=0.001))
    found = families(evidence([PGD20, fine, PGD100], {"fine": 40, "pgd20": 60}))
    assert [[scenario.name for scenario in family] for family in found] == [["fine", "pgd100"]]
    assert said(more_steps_weaker(evidence([PGD20, fine], {"pgd20": 40, "fine": 60}))) == [("unmeasured", "")]


def cascade(first, after_first, after_square, surrogate=FullGradient, stochastic=False):
    scenario = Scenario("all", Cascade(attacks={"first": first, "square": SQUARE.attack}), surrogate)
    columns = {"all/first/correct": right(after_first), "all/square/correct": right(after_square)}
    return evidence([scenario], stochastic=stochastic, **columns)


def test_queries_that_break_what_gradients_left_are_raised():
    assert said(query_part_gains(cascade(PGD20.attack, 60, 40))) == [("raised", "all")]


@pytest.mark.parametrize("changed", [{"surrogate": Undefended}, {"stochastic": True}])
def test_queries_may_break_what_the_bare_classifier_or_other_draws_left(changed):
    assert said(query_part_gains(cascade(PGD20.attack, 60, 40, **changed))) == [("unmeasured", "")]


def test_queries_may_find_a_single_image_more():
    assert said(query_part_gains(cascade(PGD20.attack, 60, 59))) == [("clear", "all")]


def test_queries_after_a_single_step_may_find_many_more():
    assert said(query_part_gains(cascade(SINGLE.attack, 60, 40))) == [("unmeasured", "")]


def test_parts_that_were_run_on_survivors_alone_count():
    after = torch.where(right(60) > 0, right(40), torch.nan)
    scenario = Scenario("all", Cascade(attacks={"first": PGD20.attack, "square": SQUARE.attack}))
    found = query_part_gains(evidence([scenario], **{"all/first/correct": right(60), "all/square/correct": after}))
    assert found[0].measured == 0.2
