"""Gradients that lead nowhere, with columns made by hand."""

import functools

import pytest
import torch
import yaml

from lightning_advdef.attacks import FGSM, PGD, Cascade, DeepFool, Noise, Square
from lightning_advdef.evaluation import Scenario
from lightning_advdef.evaluation.diagnostics.gradients import images_untouched, zero_gradients
from lightning_advdef.models import MLP
from tests.evaluation.diagnostics.helpers import COUNT, evidence, right, said
from tests.toys import KnownRounding, RoundedInput

PGD20 = Scenario("pgd20", PGD(0.1, steps=20))


def zeros(count):
    return {"pgd20/zero_gradients": 1 - right(COUNT - count).long()}


def test_zero_gradients_of_many_images_are_raised_and_the_margin_is_next():
    (found,) = zero_gradients(evidence([PGD20], **zeros(20)))
    assert (found.status, found.scenario) == ("raised", "pgd20")
    assert yaml.safe_load(found.next)[0]["attack"]["init_args"]["loss"] == "margin"


def test_single_images_may_have_zero_gradients():
    assert said(zero_gradients(evidence([PGD20], **zeros(6)))) == [("clear", "pgd20")]


def test_where_the_margin_has_no_gradient_either_scores_are_next():
    margin = Scenario("pgd20", PGD(0.1, steps=20, loss="margin"))
    (found,) = zero_gradients(evidence([margin], **zeros(20)))
    assert yaml.safe_load(found.next)[0]["attack"]["class_path"] == "Square"


@pytest.mark.parametrize(("defense", "next_attack"), [(RoundedInput, "Square"), (KnownRounding, "APGD")])
def test_where_no_image_has_a_gradient_and_no_surrogate_is_named_scores_are_next(defense, next_attack):
    defended = defense(functools.partial(MLP, hidden=[8]), spec="digits")
    (found,) = zero_gradients(evidence([PGD20], defense=defended, **zeros(COUNT)))
    assert yaml.safe_load(found.next)[0]["attack"]["class_path"] == next_attack


def test_attacks_without_gradients_are_not_asked_for_them():
    assert said(zero_gradients(evidence([Scenario("square", Square(0.1))]))) == [("unmeasured", "")]


def test_wrong_images_do_not_count():
    wrong = torch.where(torch.arange(COUNT) < 80, torch.arange(COUNT) % 10, -1)
    assert said(zero_gradients(evidence([PGD20], **zeros(20), **{"clean/prediction": wrong}))) == [("clear", "pgd20")]


def test_images_that_are_given_back_as_they_were_are_raised():
    fgsm = Scenario("fgsm", FGSM(0.1))
    assert said(images_untouched(evidence([fgsm], **{"fgsm/linf": right(20)}))) == [("raised", "fgsm")]
    assert said(images_untouched(evidence([fgsm], **{"fgsm/linf": right(95)}))) == [("clear", "fgsm")]


def test_a_cascade_noise_and_a_search_for_the_smallest_norm_may_give_images_back():
    others = [Scenario("all", Cascade(attacks={"pgd": PGD20.attack})), Scenario("df", DeepFool())]
    others.append(Scenario("noise", Noise(0.1)))
    still = {f"{scenario.name}/linf": torch.zeros(COUNT) for scenario in others}
    assert said(images_untouched(evidence(others, **still))) == [("unmeasured", "")]
