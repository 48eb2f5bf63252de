"""What attacks on one network spend, from result folders made by hand."""

import pytest

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.run import read_runs
from lightning_advdef.evaluation.strength import attack_strength
from tests.evaluation.results import columns, evaluated, minimal, one, spending, write


def strength(folder, *scenarios):
    """Curves of attacks that spend 0 on the first of two images and 1 on the other, which they break."""
    attacks = [(scenario["name"], [0.0, 1.0], (True, False)) for scenario in scenarios]
    return curves_of(write(folder, scenarios, columns([True, True], *attacks)))


def curves_of(folder):
    chart = attack_strength([one(folder)])
    return {curve.label: [(point.x, point.y) for point in curve.points] for curve in chart.curves}


def test_attacks_are_curves_against_the_norm_that_they_spend(tmp_path):
    norms = {"fgm_0.5": 0.5, "fgm_1": 1.0, "generator_c50": 0.25, "generator_c9": 0.75}
    scenarios = [spending(name, 0.5, "FGM" if "fgm" in name else "GeneratorAttack") for name in norms]
    attacks = [(name, [0.0, 2 * norm], (True, False)) for name, norm in norms.items()]
    other = [minimal(), spending("sign", 0.2, eps=0.1, norm="linf")]
    folder = write(tmp_path / "run", [*scenarios, *other], columns([True, True], *attacks))
    assert curves_of(folder) == {
        "fgm": [(0.0, 1.0), (0.5, 0.5), (1.0, 0.5)],
        "generator": [(0.0, 1.0), (0.25, 0.5), (0.75, 0.5)],
    }


def test_different_attacks_of_one_suite_are_curves_of_their_own(tmp_path):
    found = strength(tmp_path / "run", spending("l2_fgm", 0.5), spending("l2_pgd", 0.5, "PGD"))
    assert set(found) == {"l2_fgm", "l2_pgd"}


def test_rows_that_continue_others_are_refused(tmp_path):
    rows = [spending("fgm/eps0.5", 0.5, eps=0.5), spending("fgm/eps1", 0.5, eps=1.0, after="fgm/eps0.5")]
    with pytest.raises(ResultFolderError, match=r"fgm/eps1 .* continues fgm/eps0\.5"):
        strength(tmp_path / "run", *rows)


def test_a_row_in_another_norm_may_continue_one(tmp_path):
    rows = [spending("fgm_1", 0.5), spending("sign/eps1", 0.5, norm="linf", after="sign/eps0.5")]
    assert set(strength(tmp_path / "run", *rows)) == {"fgm_1"}


def test_attacks_on_two_networks_are_refused(tmp_path):
    folders = [evaluated(tmp_path / name, [0.1] * 4) for name in "ab"]
    with pytest.raises(ValueError, match="attacks on one network, got 2 folders"):
        attack_strength(read_runs(folders))
