"""Every command and every piece of Python on the pages runs."""

import os
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from tests.conftest import ROOT
from tests.miniature import execute, execute_python
from tests.pages import PAGES, advdef_words, all_commands, blocks, commands, config_files, files, is_shell, name_of
from tests.toys import Foreign, foreign_loader

# made there, used here
README_RUNS = {"runs/standard_mnist"}


def names_of_a_reader():
    """What the Python blocks take for granted."""
    images, labels = next(iter(foreign_loader(count=4)))
    network = Foreign().eval()
    given = {"network": network, "defense": network, "images": images, "labels": labels, "Trainer": Trainer}
    return given | {"my_module": Foreign(), "my_data": foreign_loader()}


@pytest.fixture(params=PAGES, ids=name_of)
def page(request):
    return request.param


def test_commands_of_the_page_name_what_exists(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = files(page)
    for words in all_commands(page):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets)
        for word in advdef_words(words) or []:
            if word.startswith(("configs/", "checkpoints/")):
                assert (ROOT / word).is_file(), word
            elif word.endswith(".yaml"):
                assert word in named, f"no block of the page is {word}"


def test_runs_that_the_page_uses_are_made_on_it(page):
    trained, made = set(README_RUNS), set(README_RUNS)
    made |= {run for language, block in blocks(page) if language == "python" for run in re.findall(r"runs/\w+", block)}
    for words in filter(None, map(advdef_words, all_commands(page))):
        for word in words:
            if words[0] in ("test", "predict", "fit", "export") and re.fullmatch(r"runs/.*\.ckpt", word):
                assert word.removesuffix("/model.ckpt") in trained, f"{word} is not there yet"
            if words[0] in ("report", "compare") and (folder := re.fullmatch(r"(\w+=)?(runs/[^*]+)", word)):
                assert folder[2] in made, f"{folder[2]} is not there yet"
        if words[0] in ("test", "predict", "fit"):
            made.add(run_of(words, page))
        if words[0] == "fit":
            trained.add(run_of(words, page))


def run_of(words, page):
    """Folder of a training or an evaluation."""
    given, file = dict(pairwise(words)), config_files(words)[0]
    config = files(page).get(file) or (ROOT / file).read_text()
    name = given.get("--name") or re.search(r"^name: (\S+)", config, re.MULTILINE)[1]
    return f"{given.get('--runs', 'runs')}/{name}"


def test_what_is_no_command_of_a_page_is_noticed():
    with pytest.raises(AssertionError, match="advdeff"):
        commands("advdeff fit -c config.yaml")


def test_loops_and_variables_of_a_page_are_filled_in():
    block = "for size in 1 2; do\n  run='--name n'\n  advdef fit $run --x '[$size]' \\\n    --y c$size\ndone\n"
    assert [words[-1] for words in commands(block)] == ["c1", "c2"]
    assert commands(block)[0] == ["advdef", "fit", "--name", "n", "--x", "[$size]", "--y", "c1"]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "attacks.md"], ids=name_of)
def test_python_of_the_page_runs(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    names = names_of_a_reader()
    for language, block in blocks(page):
        if language == "python":
            exec(block, names)
    assert torch.isfinite(names["adversarial"]).all()
    if page.stem == "README":
        assert list(tmp_path.rglob("robustness.json"))


@pytest.mark.slow
def test_the_page_runs_from_its_beginning_to_its_end(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("configs", "checkpoints"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name, content in files(page).items():
        (tmp_path / name).write_text(content)
    images, labels = np.zeros((10, 8, 8), dtype=np.uint8), np.arange(10)
    np.savez(tmp_path / "my_data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)  # of a reader
    if page.stem != "README" or page.parent != ROOT:
        execute(["advdef", "fit", "-c", "configs/standard/mnist.yaml"])
    names = names_of_a_reader()
    for language, block in blocks(page):
        if language == "python":
            execute_python(block, names)
        for words in commands(block) if is_shell(language) else []:
            execute(words)


@pytest.mark.slow
def test_demo_prints_one_table_of_both_networks(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    demo = ["make", "-f", ROOT / "Makefile", "demo", f"PYTHON={sys.executable}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.rpartition("advdef report")[2]
    for said in ("standard_digits", "deep_defense_digits", "worst case"):
        assert said in table
