"""Every benchmark that a page, a docstring or the Makefile names can be started as it says; none is run."""

import argparse
import importlib
import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT
from tests.pages import name_of

_MODULE = "python -m benchmarks."
PAGES = [ROOT / "RESULTS.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted((ROOT / "benchmarks").glob("*.py"))
NAMING = [path for path in (*PAGES, *MODULES, ROOT / "Makefile") if _MODULE in path.read_text()]
# within backticks, with more options in the next ones if they follow at once; or a line of its own, maybe continued
_COMMAND = re.compile(
    r"`python -m (benchmarks\.[^`]*)`(?:[^`]{1,8}`(--[^`]*)`)?|^[^`\n]*?python -m (benchmarks\.(?:\\\n|[^`\n])*)$",
    re.MULTILINE,
)


class Parsed(Exception):  # noqa: N818 - no mistake
    """The words were understood."""


def commands(text):
    """Module and words of each command, options in brackets included."""
    found = _COMMAND.findall(text)
    assert len(found) == text.count(_MODULE), "a command is neither within backticks nor a line of its own"
    entries = [
        entry for inline, further, line in found for entry in (inline or line, further and f"{inline} {further}")
    ]
    return [shlex.split(re.sub(r"\\\n|[\[\]]", " ", entry), comments=True) for entry in entries if entry]


def text_of(path):
    """What a file says, the Makefile with its variables filled in."""
    if path.name != "Makefile":
        return path.read_text()
    listing = ["make", "--dry-run", "bench", "PYTHON=python"]
    return subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def start(words, monkeypatch):
    """Starts a benchmark, up to where its words are read."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser):
        parse(parser, words[1:])
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    importlib.import_module(words[0]).main()


@pytest.mark.parametrize("path", NAMING, ids=name_of)
def test_benchmarks_take_the_words_that_a_page_has_for_them(monkeypatch, path):
    for words in commands(text_of(path)):
        with monkeypatch.context() as patched, pytest.raises(Parsed):
            start(words, patched)
        assert all((ROOT / word).is_file() for word in words if word.startswith("checkpoints/")), words


def test_a_word_that_a_benchmark_does_not_know_is_noticed(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        start(["benchmarks.bench_rng", "--pictures", "3"], monkeypatch)
    assert "--pictures" in capsys.readouterr().err


def test_commands_are_found_within_text_and_in_lines():
    inline = "`python -m benchmarks.a --x 1`, and `--y 2`: ``python -m benchmarks.b [--z\n3]``. `--w` is another"
    assert commands(inline) == [
        ["benchmarks.a", "--x", "1"],
        ["benchmarks.a", "--x", "1", "--y", "2"],
        ["benchmarks.b", "--z", "3"],
    ]
    lines = "    python -m benchmarks.a --x 1  # a remark\n.venv/bin/python -m benchmarks.b \\\n  --y\n"
    assert commands(lines) == [["benchmarks.a", "--x", "1"], ["benchmarks.b", "--y"]]


def test_every_benchmark_says_how_it_is_started():
    programs = [path for path in MODULES if "ArgumentParser" in path.read_text()]
    assert programs
    for path in programs:
        assert f"{_MODULE}{path.stem}" in path.read_text(), path.name
