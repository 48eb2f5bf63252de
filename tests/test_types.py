import copy
import math
import pickle

import pytest

from lightning_advdef.types import Eps, ImageSpec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.2*0.117", 0.2 * 0.117),
        ("2 * 0.5", 1.0),
        ("0.3", 0.3),
        ("1e-3", 1e-3),
        ("-8/255", -8 / 255),
        (0.3, 0.3),
        (1, 1.0),
        (0, 0.0),
    ],
)
def test_numbers_quotients_and_products_are_read(text, value):
    assert Eps(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "eight", "8/0", "1/2/3", "8//255", "8/255px", "1**2", "1+1", "8/", "*2", None, [8, 255], {}, 1 + 2j, 10**400],
)
def test_anything_else_is_refused_in_one_sentence_with_examples(text):
    with pytest.raises(ValueError, match=r"^eps must be a number such as .*8/255") as caught:
        Eps(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_infinite_and_nan_are_numbers_that_the_attacks_judge():
    assert math.isinf(Eps("inf"))
    assert math.isnan(Eps("nan"))


def test_eps_is_a_float_for_everyone_else():
    eps = Eps("8/255")
    assert isinstance(eps, float)
    assert repr(eps) == repr(8 / 255)
    assert Eps(eps) == eps


@pytest.mark.parametrize("again", [copy.deepcopy, lambda eps: pickle.loads(pickle.dumps(eps))])
def test_eps_survives_copies(again):
    assert again(Eps("8/255")) == 8 / 255


def test_shape_of_a_spec_is_channels_height_width():
    assert ImageSpec("toy", 3, 8, 4, 10, (0.5,) * 3, (0.25,) * 3).shape == (3, 8, 4)
