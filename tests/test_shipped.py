"""What checkpoints/README.md says of the trained networks is true of the files."""

import hashlib
import re

import pytest

from lightning_advdef.checkpoints import load_defense
from lightning_advdef.errors import CheckpointError
from tests.conftest import ROOT
from tests.pages import all_commands
from tests.test_configs import ParseOnly

FOLDER = ROOT / "checkpoints"
PAGE = FOLDER / "README.md"
TEXT = PAGE.read_text()
ROWS = dict(re.findall(r"^\| `(\w+\.ckpt)`.*?\| (.*)$", TEXT, re.MULTILINE))
(DATA,) = re.findall(r"`DATA` stands for `([^`]*)`", TEXT)


def with_data(words):
    return [part for word in words for part in (DATA.split() if word == "DATA" else [word])]


def configuration(name):
    """The words that a row has for what its network was made with."""
    (words,) = re.findall(r"`(?:advdef fit )?(-c configs/[^`]*)`", ROWS[name])
    return with_data(words.split())


def loaded(name, words):
    """The defense of a configuration with the weights of a file, without data."""
    cli = ParseOnly(args=["test", *words, "--model.weights", str(FOLDER / name)])
    defense = cli.parser.instantiate_classes(cli.config)["test"].model
    defense.setup("test")
    return defense


@pytest.mark.parametrize("name", ROWS)
def test_network_loads_with_the_configuration_of_its_row(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    defense, described = loaded(name, configuration(name)), load_defense(FOLDER / name)
    assert str(defense) == str(described), "layers without weights differ"
    own, stored = defense.state_dict(), described.state_dict()
    assert own.keys() == stored.keys()
    assert all(own[key].equal(stored[key]) for key in own)


def test_a_configuration_without_the_settings_of_a_row_is_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    words = configuration("mnist_lenet_idfr.ckpt")
    with pytest.raises(CheckpointError, match=r"--model\.denoiser"):
        loaded("mnist_lenet_idfr.ckpt", [*words[:2], "--model.stage", "restore"])


@pytest.mark.parametrize("number", range(len(all_commands(PAGE))))
def test_command_of_the_page_is_understood(monkeypatch, number):
    monkeypatch.chdir(ROOT)
    words = with_data(all_commands(PAGE)[number])
    assert words[0] == "advdef"
    ParseOnly(args=words[1:])


def test_every_file_has_a_row_with_its_checksum():
    assert ROWS.keys() == {path.name for path in FOLDER.glob("*.ckpt")}
    for name, row in ROWS.items():
        assert f"`{hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()}`" in row, name
