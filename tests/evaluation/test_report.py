"""``advdef report --figure``."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from lightning_advdef.__main__ import run
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.report import FIGURES, parser
from tests.conftest import ROOT, scenario
from tests.evaluation.results import columns, evaluated, log, spending, write


@pytest.fixture
def runs(tmp_path):
    """Two methods, each evaluated and with the log of a training."""
    folders = [tmp_path / "pgn" / "c1", tmp_path / "fgm" / "e1"]
    for number, folder in enumerate(folders, start=1):
        evaluated(folder, [0.1 * number] * 3 + [9.0])
        log(folder, {"val/mean_norm/cw": {9: 0.5}, "val/clean_accuracy": {9: 0.75}, "epoch": {9: 0.0}})
    return folders


@pytest.mark.parametrize(
    ("arguments", "printed", "row"),
    [
        (["--figure=robustness"], "fgm lies outside pgn", ["pgn", "c1", 0.1, 0.75]),
        (["--figure=robustness", "--misclassified=included"], "count as 0", ["pgn", "c1", 0.075, 0.75]),
        (["--figure=accuracy_norm", "--scenario=cw"], "c1: 75.00%", ["c1", "", 0.0, 0.75]),
        (["--figure=trajectory", "--scenario=cw"], "75.00%", ["c1", "1", 0.5, 0.75]),
    ],
)
def test_figure_is_written_and_its_findings_printed(runs, tmp_path, capsys, arguments, printed, row):
    files = [tmp_path / "figure.svg", tmp_path / "points.csv"]
    run(["report", *map(str, runs), *arguments, "-o", str(files[0]), "-o", str(files[1])])
    assert printed in " ".join(capsys.readouterr().out.split())
    assert files[0].read_text().startswith("<?xml")
    found = next(csv.DictReader(files[1].open()))
    assert [found["curve"], found["point"], float(found["x"]), float(found["y"])] == pytest.approx(row)


def test_a_folder_given_twice_is_one_column(runs, tmp_path):
    page = tmp_path / "r.md"
    run(["report", str(runs[0]), str(runs[0]), "-o", str(page)])
    table = [line for line in page.read_text().splitlines() if "clean accuracy |" in line]
    head = next(line for line in page.read_text().splitlines() if line.startswith("|") and "c1" in line)
    assert head.count("c1") == 1
    assert {line.count("|") for line in table} == {head.count("|")}


NAME = "sweep[lr=0.1][/b]"


def test_names_are_text_on_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    for folder in (NAME, "other"):
        evaluated(tmp_path / folder, [0.1] * 4)
    run(["report", NAME])
    assert f"results: {NAME}/robustness.json, a row per image: {NAME}/robustness.npz" in capsys.readouterr().out
    figures = ["--figure=robustness", "-o", f"{NAME}.csv"]
    for arguments in (
        [NAME, "other", *figures],
        [f"A[/b]={NAME}", "B[/b]=other", *figures],
        [NAME, "-o", f"{NAME}.md"],
    ):
        run(["report", *arguments])
        printed = capsys.readouterr().out
        assert f"written: {NAME}{arguments[-1].removeprefix(NAME)}" in printed
        assert ("A[/b]" if "A[/b]" in arguments[0] else NAME) in printed


def test_names_are_text_in_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["_base", "a$b$c_{", "x$_{$"]
    for name in names:
        evaluated(tmp_path / name, [0.1] * 4)
    run(["report", *names, "--figure=accuracy_norm", "-o", "figure.svg"])
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in names)


def test_figures_make_their_folder(runs, tmp_path):
    files = [tmp_path / "new" / "figure.png", tmp_path / "newer" / "points.csv"]
    run(["report", str(runs[0]), "--figure=accuracy_norm", "-o", str(files[0]), "-o", str(files[1])])
    assert [[found.name for found in path.parent.iterdir()] for path in files] == [["figure.png"], ["points.csv"]]


def test_strength_of_attacks_is_written(tmp_path, monkeypatch):
    rows = columns([True, True], ("fgm_1", [1.0, 1.0], (True, False)))
    write(tmp_path / "run", [spending("fgm_1", 0.5, eps=1.0)], rows)
    monkeypatch.chdir(tmp_path)
    run(["report", "run", "--figure=attack_strength"])
    assert (tmp_path / "attack_strength.png").exists()


def test_images_are_those_that_predict_wrote(advdef, tmp_path):
    folder = advdef.digits("predict", "--evaluation.write=pgd", scenarios=[scenario("pgd", "PGD", eps=0.1, steps=2)])
    run(["report", str(folder), "--figure=images", "--scenario=pgd", "-o", str(tmp_path / "images.png")])
    assert (tmp_path / "images.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ResultFolderError, match=r"--evaluation\.write"):
        run(["report", str(folder), "--figure=images", "--scenario=fgsm"])
    (folder / "adversarial_pgd.npz").write_bytes(b"PK")
    with pytest.raises(ResultFolderError, match=r"adversarial_pgd\.npz cannot be read: run advdef predict"):
        run(["report", str(folder), "--figure=images"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario=cw"], "name a --figure"),
        (["-o", "x.png"], "other files belong to --figure"),
        (["--norm=l2"], "name a --figure"),
        (["--figure=attack_strength", "--scenario=cw"], "--scenario has no meaning"),
        (["--figure=accuracy_norm", "--misclassified=included"], "--misclassified has no meaning"),
    ],
)
def test_options_without_meaning_are_refused(runs, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(["report", str(runs[0]), *arguments])


def test_help_and_the_page_of_figures_explain_every_figure():
    page = (ROOT / "docs" / "figures.md").read_text()
    for name in FIGURES:
        assert f"  {name} " in parser().format_help()
        assert f"--figure {name}" in page


def test_table_needs_neither_lightning_nor_matplotlib(tmp_path):
    evaluated(tmp_path / "run", np.full(4, 0.5))
    code = f"import sys; from lightning_advdef.__main__ import run; run(['report', {str(tmp_path / 'run')!r}]); "
    code += "print('left out:', not {'pytorch_lightning', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "left out: True" in done.stdout
