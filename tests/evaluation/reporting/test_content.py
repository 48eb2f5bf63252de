"""Paper protocol beside strong attack, and what numbers rest on."""

import json

import pytest

from lightning_advdef.evaluation.reporting.content import contrasts, read_report
from lightning_advdef.evaluation.reporting.provenance import chosen_by, circumstances
from lightning_advdef.evaluation.run import read_runs
from lightning_advdef.files import file_hash
from tests.conftest import scenario
from tests.evaluation.reporting.runs import CLEAR, RAISED, bounded, evaluated, one

WATCHED = "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {monitor: val/robust_accuracy/pgd}}]}"


def test_paper_protocol_and_strong_attack_are_told_apart_at_each_budget(tmp_path):
    small, large = contrasts(one(evaluated(tmp_path / "run")))
    assert (small.eps, small.paper, small.knowing_names) == (0.05, None, ("bpda/eps0.05",))
    assert small.knowing["value"] == pytest.approx(2 / 5)
    assert large.paper["value"] == pytest.approx(3 / 5)
    # image 3 is lost to the gray box alone, and what a smaller budget broke counts as broken
    assert large.knowing["value"] == pytest.approx(1 / 5)
    assert large.passes == 5.0


def test_a_single_step_alone_is_no_strong_attack(tmp_path):
    fgsm = [bounded(f"fgsm{eps}", "white", eps, (False,) * 5) | {"few_gradients": True} for eps in (0.05, 0.1)]
    folder = evaluated(tmp_path / "run", scenarios=fgsm)
    small, large = contrasts(one(folder))
    assert small.knowing_names == ("bpda/eps0.05", "fgsm0.05")
    assert large.knowing_names == ("bpda/eps0.1", "fgsm0.1")
    path = folder / "robustness.json"
    result = json.loads(path.read_text())
    result["scenarios"] = [row for row in result["scenarios"] if row["name"] != "bpda/eps0.05"]
    path.write_text(json.dumps(result))
    small, large_alone = contrasts(one(folder))
    assert (small.knowing, small.knowing_names, small.passes) == (None, (), 0)
    assert large_alone == large
    (norms,) = [row for row in result["scenarios"] if "eps" not in row]
    norms["norm"] = "linf"
    path.write_text(json.dumps(result))
    small, _ = contrasts(one(folder))
    assert small.knowing is not None, "norms of another attack tell whether a budget is enough"


def test_noise_is_neither_protocol(tmp_path):
    noise = bounded("noise", "none", 0.1, (True,) * 5, attack="Noise")
    _, large = contrasts(one(evaluated(tmp_path / "run", scenarios=[noise])))
    assert "noise" not in (*large.paper_names, *large.knowing_names)


def test_findings_that_speak_come_first(tmp_path):
    (model,) = read_report(read_runs([evaluated(tmp_path / "run", diagnostics=[CLEAR, RAISED])])).models
    assert [finding["status"] for finding in model.findings] == ["raised", "clear"]
    assert model.raised == [RAISED]


def test_results_without_diagnostics_have_none(tmp_path):
    (model,) = read_report(read_runs([evaluated(tmp_path / "run")])).models
    assert model.findings == ()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("", "not known"),
        ("trainer: {callbacks: null}", "nothing: model.ckpt holds the last epoch"),
        (WATCHED, r"val/robust_accuracy/pgd \(the validation split"),
        (WATCHED.replace("[", "").replace("]", ""), r"val/robust_accuracy/pgd \(the validation split"),
        ("trainer: {callbacks: [{class_path: EpochLine, init_args: null}]}", "nothing: model.ckpt holds"),
        (WATCHED.replace("val/", "train/"), r"train/robust_accuracy/pgd \(train\)"),
    ],
)
def test_the_split_that_chose_the_checkpoint_is_said_if_known(tmp_path, config, expected):
    from re import match

    folder = evaluated(tmp_path / "run", config=config)
    (folder / "model.ckpt").write_bytes(b"trained")
    judge(folder, path="model.ckpt", sha256=file_hash(folder / "model.ckpt"))
    assert match(expected, chosen_by(one(folder)))


def judge(folder, **weights_file):
    """Lets the result name the file of its weights."""
    result = json.loads((folder / "robustness.json").read_text())
    (folder / "robustness.json").write_text(json.dumps(result | {"weights_file": weights_file}))


def test_of_weights_from_elsewhere_nothing_is_claimed(tmp_path):
    folder = evaluated(tmp_path / "run", config=WATCHED)
    (folder / "model.ckpt").write_bytes(b"trained")
    unsaid = "not known: the weights are from a file that the result does not name"
    assert chosen_by(one(folder)) == unsaid
    judge(folder, path="other.ckpt", sha256="0")
    assert chosen_by(one(folder)) == "not known: the weights are from other.ckpt"
    assert ("weights from", "other.ckpt") in circumstances(one(folder))
    judge(folder, path=None, sha256=None)
    assert chosen_by(one(folder)) == "not known: the weights are from no file: none was given as weights"


def test_a_test_says_which_file_its_weights_are_from(advdef):
    advdef.digits("fit", "--trainer.max_epochs=1", limit=4)
    scenarios = [scenario("fgsm", "FGSM", eps=0.1)]
    folder = advdef.digits("test", scenarios=scenarios, limit=4)
    assert "digits_mlp.safetensors" in chosen_by(one(folder))
    own = f"--model.weights={folder / 'model.ckpt'}"
    advdef.digits("test", own, "--overwrite", scenarios=scenarios, limit=4)
    assert not chosen_by(one(folder)).startswith("not known")
