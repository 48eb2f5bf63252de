"""Paper protocol beside strong attack, and what numbers rest on."""

import pytest

from lightning_advdef.evaluation.reporting.content import contrasts, read_report
from lightning_advdef.evaluation.reporting.provenance import chosen_by
from lightning_advdef.evaluation.run import read_runs
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

    assert match(expected, chosen_by(one(evaluated(tmp_path / "run", config=config))))
