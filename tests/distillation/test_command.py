import pytest
import torch

from lightning_advdef.__main__ import run
from lightning_advdef.attacks import DistilledPurifier
from lightning_advdef.defenses import DefenseModule
from lightning_advdef.errors import CheckpointError
from tests.conftest import GOLDEN, QUIET, result_of, scenario

DEFENSE = "tests.distillation.test_command.Negative"
OPTIONS = ["--images", "30", "--batch", "15", "--epochs", "2", "--width", "4"]


class Negative(DefenseModule):
    """Shows the classifier the negative, through a layer without gradient: the identity climbs the wrong way."""

    def purify(self, images, rng):
        return 1 - images.detach().round(decimals=4)


class Mirrored(Negative):
    def classify(self, images):
        return super().classify(1 - images)


def distill(path, *arguments, defense=DEFENSE, weights=GOLDEN / "digits_mlp.safetensors"):
    run(
        [
            *("distill", "-o", str(path), *OPTIONS, *QUIET, "--model", defense, "--model.network", "MLP"),
            *("--model.network.hidden", "[32]", "--model.weights", str(weights), "--data", "Digits", *arguments),
        ]
    )


def test_bpda_with_a_distilled_purifier_breaks_what_the_identity_does_not(advdef, tmp_path, capsys):
    defense = "tests.distillation.test_command.Mirrored"
    distill(tmp_path / "stand_in.ckpt", defense=defense)
    printed = capsys.readouterr().out
    assert "purified: 15 images\npurified: 30 images\nepoch 0/2: held-out MSE" in printed
    assert f"distilled purifier: {tmp_path / 'stand_in.ckpt'}" in printed
    stand_in = {"class_path": "DistilledPurifier", "init_args": {"weights": str(tmp_path / "stand_in.ckpt")}}
    distilled = {"class_path": "BPDA", "init_args": {"stand_in": stand_in}}
    pgd = {"eps": 0.1, "steps": 5, "random_start": False}
    scenarios = [scenario("identity", "PGD", "BPDA", **pgd), scenario("distilled", "PGD", distilled, **pgd)]
    folder = advdef.digits("test", "--model", defense, scenarios=scenarios)
    identity, found = result_of(folder)[0]["scenarios"]
    clean = result_of(folder)[0]["clean_accuracy"]["value"]
    assert identity["robust_accuracy"]["value"] == clean > 0.8
    assert found["robust_accuracy"]["value"] < 0.5


def test_pairs_lie_beside_the_file_and_serve_another_fit(tmp_path, monkeypatch):
    path = tmp_path / "stand_in.ckpt"
    distill(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["stand_in.ckpt", "stand_in.ckpt.pairs"]
    assert len(list((tmp_path / "stand_in.ckpt.pairs").glob("*.npz"))) == 2
    monkeypatch.setattr(Negative, "purify", None)
    distill(path, "--epochs", "1", "--width", "6")
    assert DistilledPurifier(str(path)).network.width == 6
    pixels = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(DistilledPurifier(str(path))(pixels), 1 - pixels, rtol=0, atol=0.05)


def test_a_stand_in_that_the_identity_beats_is_called_so(tmp_path, capsys):
    distill(tmp_path / "stand_in.ckpt", defense="tests.toys.DetachedInput")
    assert "the identity is closer to the purifier than this stand-in" in capsys.readouterr().out


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*gone.ckpt"):
        distill(tmp_path / "stand_in.ckpt", weights=tmp_path / "gone.ckpt")


def test_a_defense_without_a_purifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match="StandardModule has no purifier"):
        distill(tmp_path / "stand_in.ckpt", defense="StandardModule")
    assert not list(tmp_path.iterdir())


def test_data_without_a_usual_budget_needs_the_noise(tmp_path):
    arguments = ["distill", "-o", str(tmp_path / "a.ckpt"), *OPTIONS, *QUIET, "--model", DEFENSE]
    arguments += ["--model.network", "MLP", "--data", "tests.toys.Toy", "--data.toy_spec", "1x5x5x3"]
    with pytest.raises(ValueError, match="usual on 1x5x5x3: give --noise"):
        run(arguments)
    run([*arguments, "--noise", "8/255", "--images", "8"])
    assert (tmp_path / "a.ckpt").is_file()


@pytest.mark.parametrize("wrong", [["--images", "0"], ["--epochs", "few"], ["--noise", "loud"]])
def test_numbers_that_are_none_are_refused(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        distill(tmp_path / "stand_in.ckpt", *wrong)
    assert wrong[0] in capsys.readouterr().err
