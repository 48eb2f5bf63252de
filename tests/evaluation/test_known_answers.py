"""Through the whole command: defenses whose rows are known before they are computed."""

import json

import numpy as np
import pytest

from lightning_advdef.evaluation.rows import robust
from tests.conftest import GOLDEN, raised, result_of, scenario
from tests.toys import COUNT, LARGEST, linear_problem

SHARES = (0.1, 0.35, 0.6)  # of the largest distance; they fall in the middle between two images


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Result of every attack at every eps on the linear network, and the distances."""
    from tests.conftest import Command

    folder = tmp_path_factory.mktemp("linear")
    data, weights, distances = linear_problem(folder)
    scenarios = [scenario("deepfool", "DeepFool")]
    for norm in ("linf", "l2"):
        for share in SHARES:
            eps = float(share * LARGEST * distances[norm].max() / distances["linf"].max())
            scenarios += [
                scenario(f"fgsm_{norm}_{share}", "FGSM", eps=eps, norm=norm),
                scenario(f"pgd_{norm}_{share}", "PGD", eps=eps, norm=norm, steps=40, step_size=eps / 4),
            ]
    run = Command(folder / "runs")(
        "test",
        *("--data", "NPZ", "--data.root", data, "--model", "StandardModule", "--model.network", "MLP"),
        *("--model.network.hidden", "[]", "--model.weights", weights, "--evaluation.scenarios", json.dumps(scenarios)),
    )
    return *result_of(run), distances


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_robust_images_of_a_linear_network_are_those_farther_than_eps(linear, attack, share, norm):
    _, rows, distances = linear
    eps = share * LARGEST * distances[norm].max() / distances["linf"].max()
    expected = distances[norm] > eps
    np.testing.assert_array_equal(np.minimum(rows["clean/correct"], rows[f"{attack}_{norm}_{share}/correct"]), expected)


def test_summary_of_a_linear_network_is_the_closed_form(linear):
    summary, _, distances = linear
    assert summary["clean_accuracy"]["value"] == pytest.approx(0.9)
    assert summary["clean_accuracy"]["images"] == COUNT
    for found in summary["scenarios"][1:]:
        norm, share = found["name"].split("_")[1:]
        eps = float(share) * LARGEST * distances[norm].max() / distances["linf"].max()
        expected = (distances[norm] > eps).mean()
        assert found["robust_accuracy"]["value"] == pytest.approx(expected), found["name"]
        low, high = found["robust_accuracy"]["interval"]
        assert low < expected < high
        assert found["attack_success_rate"] == pytest.approx(1 - expected / 0.9)


def test_worst_case_of_a_linear_network_is_the_closed_form_at_every_budget(linear):
    summary, _, distances = linear
    assert len(summary["worst_case"]) == 2 * len(SHARES)
    for case in summary["worst_case"]:
        expected = (distances[case["norm"]] > case["eps"]).mean()
        # DeepFool's smallest l2 perturbation may also fit an linf budget, but never undercuts the exact distance
        assert case["accuracy"]["value"] == pytest.approx(expected)


def test_deepfool_finds_the_distance_of_a_linear_network(linear):
    summary, rows, distances = linear
    right = distances["l2"] > 0
    np.testing.assert_allclose(rows["deepfool/l2"][right], 1.02 * distances["l2"][right], rtol=2e-3)
    assert summary["scenarios"][0]["share_fooled"] == 1


def defended(advdef, defense, scenarios, *arguments, **options):
    return result_of(
        advdef.digits(
            "test", "--model", f"tests.toys.{defense}", *arguments, scenarios=scenarios, name=defense, **options
        )
    )


def test_a_defense_that_declares_noise_is_graded_on_ten_draws_with_a_clean_noise_floor(advdef):
    summary, rows = defended(advdef, "NoisyInput", [scenario("none", "FGSM", eps=0), scenario("fgsm", "FGSM", eps=0.2)])
    assert summary["stochastic"] is True
    for name in ("clean", "none", "fgsm"):
        tenths = 10 * rows[f"{name}/correct"].astype(float)
        np.testing.assert_allclose(tenths, tenths.round(), atol=1e-5)
        assert len(np.unique(tenths.round())) > 2
    # an attack of no strength is the clean images on other draws: its loss is the noise floor
    assert abs(rows["none/correct"].mean() - rows["clean/correct"].mean()) < 0.1
    assert (rows["none/correct"] != rows["clean/correct"]).any()
    mean = np.where(rows["clean/correct"] > 0, rows["fgsm/correct"], 0).mean()
    assert summary["scenarios"][1]["robust_accuracy"]["value"] == pytest.approx(mean, abs=1e-6)
    assert summary["clean_accuracy"]["value"] == pytest.approx(rows["clean/correct"].mean(), abs=1e-6)


def test_noise_that_is_not_declared_is_found_out(advdef):
    scenarios = [scenario("fgsm", "FGSM", eps=0.1), scenario("deepfool", "DeepFool", steps=1)]
    summary, rows = defended(advdef, "UndeclaredNoise", scenarios)
    assert summary["stochastic"] is True
    assert len(np.unique((10 * rows["clean/correct"]).round())) > 2
    assert {"random_without_eot", "minimal_norm_of_random"} <= raised(summary).keys()


def test_number_of_draws_can_be_chosen(advdef):
    _, rows = defended(advdef, "NoisyInput", [scenario("fgsm", "FGSM", eps=0.1)], "--evaluation.draws", "4")
    assert set(np.unique(4 * rows["fgsm/correct"])) <= {0, 1, 2, 3, 4}


def test_rounding_shows_perfect_white_box_numbers_and_falls_to_the_gray_box(advdef):
    summary, rows = defended(
        advdef,
        "RoundedInput",
        [
            scenario("white", "PGD", eps=0.3, steps=10),
            scenario("gray", "PGD", surrogate="Undefended", eps=0.3, steps=10),
        ],
        limit=60,
    )
    white, gray = (found["robust_accuracy"]["value"] for found in summary["scenarios"])
    assert summary["clean_accuracy"]["value"] > 0.8
    assert gray < 0.5
    assert gray < white
    assert [found["access"] for found in summary["scenarios"]] == ["white", "gray"]
    # no gradient at all: the attacker returns random starts
    assert (rows["white/linf"] <= 0.3 + 1e-5).all()
    assert summary["stochastic"] is False


def test_fgsm_on_a_zero_gradient_returns_the_image(advdef):
    summary, rows = defended(advdef, "RoundedInput", [scenario("white", "FGSM", eps=0.3)])
    np.testing.assert_array_equal(rows["white/linf"], 0)
    assert summary["scenarios"][0]["robust_accuracy"] == summary["clean_accuracy"]


@pytest.mark.parametrize("defense", ["DetachedInput", "RoundedInput"])
def test_a_white_box_without_gradient_finds_nothing_and_the_result_says_so(advdef, defense):
    summary, _ = defended(advdef, defense, [scenario("white", "PGD", eps=0.05, steps=3, random_start=False)])
    row = summary["scenarios"][0]
    assert row["robust_accuracy"] == summary["clean_accuracy"]
    assert row["zero_gradient_share"] == 1
    assert raised(summary)["zero_gradients"]["measured"] == 1


def test_the_gray_box_attacks_a_defense_that_cuts_the_gradient(advdef):
    scenarios = [scenario("gray", "PGD", surrogate="Undefended", eps=0.3, steps=10)]
    summary, _ = defended(advdef, "DetachedInput", scenarios)
    assert summary["scenarios"][0]["robust_accuracy"]["value"] < 0.2 < summary["clean_accuracy"]["value"]


def test_an_image_that_is_wrong_without_attack_is_not_robust():
    import torch

    rows = {"clean/correct": torch.tensor([0.0, 1.0, 1.0]), "a/correct": torch.tensor([1.0, 1.0, 0.0])}
    assert robust(rows, "a").tolist() == [0, 1, 0]


def test_golden_verdicts(advdef):
    from tests.golden.make import verdicts

    rows = verdicts(advdef.runs)
    with np.load(GOLDEN / "verdicts.npz") as golden:
        assert set(rows) == set(golden.files)
        for name in golden.files:
            kind = name.rpartition("/")[2]
            if kind in ("index", "label", "prediction", "correct"):
                np.testing.assert_array_equal(rows[name], golden[name], err_msg=name)
            elif kind == "margin":
                # a difference of logits, near 0 where an attack stopped at the boundary
                np.testing.assert_allclose(rows[name], golden[name], rtol=1e-4, atol=1e-4, err_msg=name)
            elif kind not in ("forward", "backward"):
                np.testing.assert_allclose(rows[name], golden[name], rtol=1e-4, atol=1e-7, err_msg=name)
