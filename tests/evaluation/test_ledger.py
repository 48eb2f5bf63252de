"""A finished evaluation may be extended: new parts and new scenarios, and nothing is attacked twice."""

import copy
import json

import pytest
import torch

from lightning_advdef.attacks import PGD, Square
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation import ResultStore
from lightning_advdef.evaluation.store import extends
from tests.conftest import result_of, scenario

FGSM_ENTRY = {"class_path": "FGSM", "init_args": {"eps": 0.05}}
PGD_ENTRY = {"class_path": "PGD", "init_args": {"eps": 0.05, "steps": 3}}
SQUARE_ENTRY = {"class_path": "Square", "init_args": {"eps": 0.05, "queries": 20}}
TWO = {"fgsm": FGSM_ENTRY, "pgd": PGD_ENTRY}
THREE = TWO | {"square": SQUARE_ENTRY}


def described(*scenarios, **more):
    """A fingerprint with these scenarios."""
    rows = [row | {"parts": list(row["attack"]["init_args"].get("attacks", {}))} for row in scenarios]
    return {"weights": "w", "data": {"limit": 20}, "evaluation": {"seed": 0, "scenarios": rows, **more}}


def cascade(name="c", attacks=None, **settings):
    attacks = TWO if attacks is None else attacks
    return scenario(name, "Cascade", attacks=attacks, **settings)


FGSM_SCENARIO = scenario("fgsm", "FGSM", eps=0.1)
PGD_SCENARIO = scenario("pgd", "PGD", eps=0.1)
REORDERED = {"pgd": PGD_ENTRY, "fgsm": FGSM_ENTRY}
STRONGER = TWO | {"pgd": {"class_path": "PGD", "init_args": {"eps": 0.05, "steps": 4}}}
FIRST = {"square": SQUARE_ENTRY, **TWO}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (described(FGSM_SCENARIO), described(FGSM_SCENARIO), True),
        (described(FGSM_SCENARIO, PGD_SCENARIO), described(FGSM_SCENARIO), True),
        (described(FGSM_SCENARIO), described(), True),
        (described(cascade(attacks=THREE)), described(cascade()), True),
        (described(cascade(attacks=THREE), FGSM_SCENARIO), described(cascade()), True),
        # less, other, or in another order
        (described(FGSM_SCENARIO), described(FGSM_SCENARIO, PGD_SCENARIO), False),
        (described(PGD_SCENARIO, FGSM_SCENARIO), described(FGSM_SCENARIO), False),
        (described(cascade()), described(cascade(attacks=THREE)), False),
        (described(cascade(attacks=REORDERED)), described(cascade()), False),
        (described(cascade(attacks=FIRST)), described(cascade()), False),
        (described(cascade(attacks=STRONGER)), described(cascade()), False),
        (described(cascade(attacks=THREE, cascade=False)), described(cascade(cascade=True)), False),
        (described(cascade(attacks=THREE, draws=3)), described(cascade(draws=4)), False),
        (described(cascade("d", attacks=THREE)), described(cascade()), False),
        (described(FGSM_SCENARIO, PGD_SCENARIO, seed=1), described(FGSM_SCENARIO), False),
        (described(FGSM_SCENARIO, PGD_SCENARIO) | {"weights": "v"}, described(FGSM_SCENARIO), False),
        (described(FGSM_SCENARIO, PGD_SCENARIO) | {"more": 1}, described(FGSM_SCENARIO), False),
        (described(FGSM_SCENARIO), {"seed": 0}, False),
        ({}, {}, False),
    ],
)
def test_more_of_the_same_extends_and_nothing_else_does(ours, theirs, expected):
    before = copy.deepcopy((ours, theirs))
    assert extends(ours, theirs) is expected
    assert (ours, theirs) == before


@pytest.fixture
def finished(tmp_path):
    """A folder with three judged images."""
    store = ResultStore(tmp_path, described(FGSM_SCENARIO))
    store.open()
    store.add({"index": torch.tensor([4, 2, 9]), "fgsm/correct": torch.tensor([0.4, 0.2, 0.9])})
    store.finish(store.gather(), {})
    return tmp_path


def test_rows_of_a_result_that_is_extended_are_known_in_any_order(finished):
    store = ResultStore(finished, described(FGSM_SCENARIO, PGD_SCENARIO))
    assert not store.complete
    known = store.known(torch.tensor([9, 2]))
    assert known["index"].tolist() == [9, 2]
    torch.testing.assert_close(known["fgsm/correct"], torch.tensor([0.9, 0.2]))


def test_nothing_is_known_where_nothing_is_extended(finished, tmp_path_factory):
    assert ResultStore(finished, described(FGSM_SCENARIO)).known(torch.tensor([2])) is None
    empty = tmp_path_factory.mktemp("empty")
    assert ResultStore(empty, described(FGSM_SCENARIO)).known(torch.tensor([2])) is None
    overwritten = ResultStore(finished, described(FGSM_SCENARIO, PGD_SCENARIO), overwrite=True)
    assert overwritten.known(torch.tensor([2])) is None


def test_another_result_is_refused_and_stays(finished):
    with pytest.raises(ResultFolderError, match="--overwrite"):
        ResultStore(finished, described(PGD_SCENARIO))
    assert ResultStore(finished, described(FGSM_SCENARIO)).complete


# the whole command

UNDIAGNOSED = ("--evaluation.diagnostics", "false")  # which attacks on its own account


@pytest.fixture
def attacked(monkeypatch):
    """How many images each attack was given."""
    counts = {"PGD": 0, "Square": 0}
    for kind in (PGD, Square):
        search = kind.search

        def noted(self, surrogate, images, *arguments, search=search):
            counts[type(self).__name__] = counts.get(type(self).__name__, 0) + len(images)
            return search(self, surrogate, images, *arguments)

        monkeypatch.setattr(kind, "search", noted)
    return counts


def without_circumstances(summary):
    return {name: value for name, value in summary.items() if name not in ("date", "fingerprint", "processes")}


def test_a_part_that_is_added_later_attacks_the_survivors_alone(advdef, attacked):
    folder = advdef.digits("test", *UNDIAGNOSED, scenarios=[cascade()])
    first = result_of(folder)[1]
    survivors = (first["c/broken_by"] == -1).sum()
    assert 0 < survivors < 20
    attacked.clear()
    advdef.digits("test", *UNDIAGNOSED, scenarios=[cascade(attacks=THREE)])
    summary, rows = result_of(folder)
    assert "PGD" not in attacked
    assert attacked["Square"] == survivors
    assert ((rows["c/square/forward"] > 0) == (first["c/broken_by"] == -1)).all()
    settled = first["c/broken_by"] != -1
    for name, column in first.items():
        assert (rows[name][settled] == column[settled])[~(column[settled] != column[settled])].all(), name
    whole = advdef.digits("test", *UNDIAGNOSED, scenarios=[cascade(attacks=THREE)], name="whole")
    assert without_circumstances(summary) == without_circumstances(result_of(whole)[0])
    assert (folder / "robustness.npz").read_bytes() == (whole / "robustness.npz").read_bytes()
    assert not (folder / "shards").exists()


def test_a_scenario_that_is_added_later_leaves_the_others_alone(advdef, attacked):
    scenarios = [scenario("pgd", "PGD", eps=0.1, steps=3), scenario("square", "Square", eps=0.1, queries=5)]
    folder = advdef.digits("test", *UNDIAGNOSED, scenarios=scenarios[:1])
    attacked.clear()
    advdef.digits("test", *UNDIAGNOSED, scenarios=scenarios)
    assert set(attacked) == {"Square"}
    assert (result_of(folder)[1]["square/forward"] > 0).all()


def test_a_minimal_norm_attack_may_be_added_to_others(advdef, attacked):
    scenarios = [scenario("pgd", "PGD", eps=0.1, steps=3), scenario("deepfool", "DeepFool", steps=3)]
    folder = advdef.digits("test", *UNDIAGNOSED, scenarios=scenarios[:1], limit=6)
    attacked.clear()
    advdef.digits("test", *UNDIAGNOSED, scenarios=scenarios, limit=6)
    assert not attacked
    whole = advdef.digits("test", *UNDIAGNOSED, scenarios=scenarios, limit=6, name="whole")
    assert (folder / "robustness.npz").read_bytes() == (whole / "robustness.npz").read_bytes()


def test_an_extension_is_finished_then_and_not_repeated(advdef, attacked, capsys):
    advdef.digits("test", scenarios=[cascade()], limit=6)
    advdef.digits("test", scenarios=[cascade(attacks=THREE)], limit=6)
    attacked.clear()
    capsys.readouterr()
    advdef.digits("test", scenarios=[cascade(attacks=THREE)], limit=6)
    assert "already evaluated" in capsys.readouterr().out
    assert not attacked
    with pytest.raises(ResultFolderError, match="--overwrite"):
        advdef.digits("test", scenarios=[cascade()], limit=6)


def test_an_extension_with_another_setting_is_refused(advdef):
    folder = advdef.digits("test", scenarios=[cascade()], limit=6)
    before = (folder / "robustness.json").read_text()
    with pytest.raises(ResultFolderError, match=r"steps: 3 there, 4 now.*--overwrite"):
        advdef.digits("test", scenarios=[cascade(attacks=STRONGER)], limit=6)
    assert (folder / "robustness.json").read_text() == before


def test_an_interrupted_extension_keeps_the_first_result_and_goes_on(advdef, monkeypatch):
    folder = advdef.digits("test", "--evaluation.batch_size=4", scenarios=[cascade()], limit=12)
    before = (folder / "robustness.json").read_text()
    calls, search = [], Square.search

    def failing(self, *arguments):
        calls.append(self)
        if len(calls) > 1:
            raise RuntimeError("the power went off")
        return search(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Square, "search", failing)
        with pytest.raises(RuntimeError, match="power"):
            advdef.digits("test", "--evaluation.batch_size=4", scenarios=[cascade(attacks=THREE)], limit=12)
    assert (folder / "robustness.json").read_text() == before
    advdef.digits("test", "--evaluation.batch_size=4", scenarios=[cascade(attacks=THREE)], limit=12)
    whole = advdef.digits(
        "test", "--evaluation.batch_size=4", scenarios=[cascade(attacks=THREE)], limit=12, name="whole"
    )
    assert (folder / "robustness.npz").read_bytes() == (whole / "robustness.npz").read_bytes()


# equal bits


def test_in_strict_mode_a_cascade_gives_equal_bits_for_every_loader(advdef):
    attacks = {
        "apgd": {"class_path": "APGD", "init_args": {"eps": 0.05, "steps": 6}},
        "fab": {"class_path": "FAB", "init_args": {"steps": 5}},
        "square": SQUARE_ENTRY,
    }
    options = ("--evaluation.strict=true", "--evaluation.batch_size=16")
    folders = [
        advdef.digits("test", *options, f"--data.batch_size={size}", scenarios=[cascade(attacks=attacks)], name=name)
        for name, size in (("one", 20), ("two", 7))
    ]
    one, two = ((folder / "robustness.npz").read_bytes() for folder in folders)
    assert one == two
    summary = json.loads((folders[0] / "robustness.json").read_text())
    assert summary["scenarios"][0]["parts"][-1]["cumulative_accuracy"] == summary["scenarios"][0]["robust_accuracy"]
