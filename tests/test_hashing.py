"""Files that a result rests on: those that a description names, and those of classes in use."""

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections import OrderedDict

import pytest
from torch import nn

from lightning_advdef import hashing
from lightning_advdef.attacks import EOT, PGD, Targeted
from lightning_advdef.defenses import FeatureSqueezingModule, PurificationModule
from lightning_advdef.hashing import code_hash, file_hashes
from lightning_advdef.models import MLP
from lightning_advdef.purifiers import Chain, Median

OF_MY_OWN = """
from dataclasses import dataclass
from torch import nn
from lightning_advdef.attacks import PGD, FullGradient
from lightning_advdef.purifiers import Purifier

class Layer(nn.Module):
    pass

class Surrogate(FullGradient):
    pass

@dataclass(frozen=True)
class Attack(PGD):
    pass

@dataclass(frozen=True)
class Mine(Purifier):
    def __call__(self, images, rng):
        return images
"""
NETWORK = functools.partial(MLP, hidden=[4])


def attack_with(checkpoint):
    return {"class_path": "PGD", "init_args": {"start": {"class_path": "G", "init_args": {"checkpoint": checkpoint}}}}


def test_named_checkpoints_are_hashed_however_deep(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"weights")
    expected = {str(path): hashlib.sha256(b"weights").hexdigest()}
    assert file_hashes([attack_with(str(path)), {"eps": 0.1}]) == expected


def test_a_changed_file_has_another_hash(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"one")
    before = file_hashes(attack_with(str(path)))
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert file_hashes(attack_with(str(path))) != before


def test_nothing_is_said_of_files_that_are_not_there(tmp_path):
    assert file_hashes([attack_with(str(tmp_path / "a.ckpt")), attack_with(None), 3, "checkpoint"]) == {}


@pytest.fixture
def mine(tmp_path):
    """A module in a file of one's own."""
    path = tmp_path / "of_my_own.py"
    path.write_text(OF_MY_OWN)
    spec = importlib.util.spec_from_file_location("of_my_own", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "of_my_own", module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    "hold",
    [
        lambda mine: PurificationModule(NETWORK, mine.Mine()),
        lambda mine: PurificationModule(NETWORK, Chain([Median(3), Chain([mine.Mine()])])),
        lambda mine: FeatureSqueezingModule(NETWORK, [Median(3), mine.Mine()]),
        lambda mine: nn.Sequential(nn.Sequential(mine.Layer())),
        lambda mine: mine.Attack(0.1),
        lambda mine: Targeted(mine.Attack(0.1)),
        lambda mine: EOT(nn.Identity(), of=mine.Surrogate),
        lambda mine: type("Derived", (mine.Layer,), {})(),
    ],
    ids=["purifier", "chain", "squeezer", "layer", "attack", "inner attack", "inner surrogate", "base class"],
)
def test_the_code_of_a_class_of_ones_own_counts_wherever_it_is_used(mine, hold):
    item = hold(mine)
    before = code_hash(item)
    with open(mine.__file__, "a") as file:
        file.write("# edited")
    assert code_hash(item) != before


@pytest.mark.parametrize(
    "statement",
    [
        "from my_project.helpers import half",
        "from my_project.helpers import AMOUNT",
        "import my_project.helpers as tools",
        "from my_project import helpers",
        "from .helpers import *",
        "from . import between",
        "def later():\n    from my_project import helpers",
    ],
)
def test_the_code_that_a_class_of_ones_own_imports_counts_however_deep(tmp_path, monkeypatch, statement):
    package = tmp_path / "my_project"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helpers.py").write_text("AMOUNT = 0.5\n\n\ndef half(images):\n    return images * AMOUNT\n")
    (package / "between.py").write_text("import torch\nfrom . import defense, helpers\n")
    (package / "defense.py").write_text(f"from torch import nn\n{statement}\n\n\nclass Mine(nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    item = importlib.import_module("my_project.defense").Mine()
    importlib.import_module("my_project.helpers")
    before = code_hash(item)
    (package / "helpers.py").write_text("AMOUNT = 0")
    after = code_hash(item)
    for name in ("", ".helpers", ".between", ".defense"):
        sys.modules.pop(f"my_project{name}", None)
    assert before != after


def test_the_code_of_installed_classes_does_not_count():
    assert code_hash(nn.ReLU(), OrderedDict(a=PGD(0.1)), functools.partial(MLP)) == code_hash()


def test_objects_that_hold_each_other_are_read_once():
    first, second = [], []
    first.append(second)
    second.append(first)
    assert code_hash(first) == code_hash()


@pytest.mark.parametrize(("file", "counts"), [("attacks/pgd.py", True), ("evaluation/reporting/html.py", False)])
def test_code_that_only_shows_results_does_not_count(tmp_path, monkeypatch, file, counts):
    monkeypatch.setattr(hashing, "_ROOT", tmp_path)
    (tmp_path / file).parent.mkdir(parents=True)
    found = set()
    for text in ("before", "after"):
        (tmp_path / file).write_text(text)
        hashing._package_source.cache_clear()
        found.add(code_hash())
    hashing._package_source.cache_clear()
    assert len(found) == 1 + counts
