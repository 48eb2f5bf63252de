"""The result folder: finished, interrupted, different, replaced."""

import json
from itertools import chain

import pytest
import torch

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation import Judge, ResultStore
from lightning_advdef.evaluation.store import first_difference, join_rows, write_json
from tests.conftest import raised, result_of, scenario

SCENARIOS = [scenario("pgd", "PGD", eps=0.1, steps=4), scenario("deepfool", "DeepFool")]
RESULTS = {"robustness.json", "robustness.npz", "examples.npz"}
FILES = RESULTS | {"hparams.yaml"}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in RESULTS}


def files_of(folder):
    """All of a folder but the log, which each run begins anew."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "events" not in path.name}


def names(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith("events")}


class Judged:
    """Counts judged batches and may stop in the middle."""

    def __init__(self, monkeypatch, stop_after=None):
        self.images = []
        judge = Judge.__call__

        def counting(this, batch, *known):
            if stop_after is not None and len(self.images) >= stop_after:
                raise RuntimeError("the power went off")
            self.images.append(batch.indices.tolist())
            return judge(this, batch, *known)

        monkeypatch.setattr(Judge, "__call__", counting)


def test_a_finished_evaluation_leaves_its_files_and_nothing_temporary(advdef):
    folder = advdef.digits("test", scenarios=SCENARIOS)
    assert names(folder) == FILES


def test_a_finished_evaluation_is_printed_again_and_not_repeated(advdef, monkeypatch, capsys):
    folder = advdef.digits("test", scenarios=SCENARIOS)
    before = content(folder)
    capsys.readouterr()
    judged = Judged(monkeypatch)
    advdef.digits("test", scenarios=SCENARIOS)
    printed = capsys.readouterr().out
    assert judged.images == []
    assert content(folder) == before
    assert "already evaluated" in printed
    assert "pgd" in printed


@pytest.mark.parametrize("strict", ["false", "true"])
def test_an_interrupted_evaluation_continues_and_gives_the_same_rows(advdef, strict):
    options = ("--evaluation.batch_size=4", f"--evaluation.strict={strict}")
    with pytest.MonkeyPatch.context() as patch:
        first = Judged(patch, stop_after=3)
        with pytest.raises(RuntimeError, match="power"):
            advdef.digits("test", *options, scenarios=SCENARIOS)
    folder = advdef.runs / "run"
    assert not (folder / "robustness.json").exists()
    assert len(list((folder / "shards").glob("*.npz"))) == 3
    with pytest.MonkeyPatch.context() as patch:
        second = Judged(patch)
        advdef.digits("test", *options, scenarios=SCENARIOS)
    assert not set(chain(*first.images)) & set(chain(*second.images))
    whole = advdef.digits("test", *options, scenarios=SCENARIOS, name="whole")
    for name in ("robustness.npz", "examples.npz"):
        assert content(folder)[name] == content(whole)[name]
    assert names(folder) == FILES
    ours, theirs = result_of(folder)[0], result_of(whole)[0]
    for key in ("date", "processes"):
        ours.pop(key), theirs.pop(key)
    assert ours == theirs


@pytest.mark.parametrize(
    ("difference", "where"),
    [
        ({"scenarios": [scenario("pgd", "PGD", eps=0.2, steps=4)]}, "eps: 0.1 there, 0.2 now"),
        ({"scenarios": [scenario("pgd", "PGD", eps=0.1, steps=5)]}, "steps: 4 there, 5 now"),
        ({"arguments": ["--evaluation.seed=1"]}, "seed: 0 there, 1 now"),
        ({"arguments": ["--evaluation.draws=3"]}, "draws: 10 there, 3 now"),
        ({"limit": 8}, "limit: 10 there, 8 now"),
        ({"arguments": ["--model.weights=null"]}, "weights: "),
        ({"arguments": ["--model.votes=2"]}, "votes: 1 there, 2 now"),
    ],
)
def test_a_folder_with_another_result_is_refused_and_left_alone(advdef, difference, where):
    base = {"scenarios": SCENARIOS[:1], "limit": 10}
    folder = advdef.digits("test", **base)
    before = content(folder)
    arguments = difference.pop("arguments", [])
    with pytest.raises(ResultFolderError, match="--overwrite") as caught:
        advdef.digits("test", *arguments, **(base | difference))
    assert where in str(caught.value)
    assert content(folder) == before
    advdef.digits("test", *arguments, "--overwrite", **(base | difference))
    assert content(folder) != before
    assert names(folder) == FILES


def test_other_images_of_the_same_shape_are_another_evaluation(advdef, tmp_path):
    from tests.toys import linear_problem

    data, weights, _ = linear_problem(tmp_path)
    arguments = ["--data=NPZ", f"--data.root={data}", "--model=StandardModule", "--model.network=MLP"]
    arguments += ["--model.network.hidden=[]", f"--model.weights={weights}"]
    arguments += [f"--evaluation.scenarios={json.dumps(SCENARIOS[:1])}"]
    advdef("test", *arguments)
    import numpy as np

    with np.load(data) as arrays:
        changed = dict(arrays) | {"x_test": 1 - arrays["x_test"]}
    np.savez(data, **changed)
    with pytest.raises(ResultFolderError, match="images: "):
        advdef("test", *arguments)


def test_loader_batch_size_is_not_part_of_what_a_result_is(advdef, monkeypatch):
    advdef.digits("test", scenarios=SCENARIOS)
    judged = Judged(monkeypatch)
    advdef.digits("test", "--data.batch_size=8", scenarios=SCENARIOS)
    assert judged.images == []


def test_summary_says_what_was_run_on_what(advdef):
    summary, _ = result_of(advdef.digits("test", scenarios=SCENARIOS))
    assert summary["schema"] == 1
    exact = {"autocast": False, "tf32": False, "cudnn_benchmark": False}
    assert summary["flags"] == exact | {"search": "float32"}
    assert {"torch", "pytorch-lightning", "lightning-advdef"} <= summary["versions"].keys()
    assert len(summary["fingerprint"]["weights"]) == 64
    assert summary["fingerprint"]["evaluation"]["scenarios"][0]["attack"]["init_args"]["steps"] == 4
    assert summary["stochastic"] is False
    assert raised(summary) == {}


def test_json_has_no_nan_where_no_image_was_right(advdef):
    # untrained weights on two images of class 9: nothing is right, so a mean over right images is over nothing
    folder = advdef.digits("test", "--model.network.hidden=[]", "--model.weights=null", scenarios=SCENARIOS, limit=1)
    summary, _ = result_of(folder)
    values = json.dumps(summary["scenarios"][1])
    assert "NaN" not in values


def test_json_replaces_nan_and_infinity(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), {"b": float("inf")}], "c": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, {"b": None}], "c": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_first_difference_names_the_place():
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a[1].b: 3 there, 2 now"
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b: 2 there, None now"
    assert first_difference({"a": (1)}, {"a": 1}) is None


def test_images_judged_twice_count_once():
    part = {"index": torch.tensor([4, 2]), "x": torch.tensor([40.0, 20.0])}
    again = {"index": torch.tensor([2, 1]), "x": torch.tensor([20.0, 10.0])}
    assert join_rows([part, again])["x"].tolist() == [10, 20, 40]


def test_an_empty_evaluation_says_so():
    with pytest.raises(RuntimeError, match="no image was judged"):
        join_rows([])


def test_rows_of_one_draw_are_not_joined_to_those_of_several():
    parts = [{"index": torch.tensor([i]), "clean/stochastic": torch.tensor([i])} for i in (0, 1)]
    with pytest.raises(RuntimeError, match="stochastic = True"):
        join_rows(parts)


def test_a_store_of_another_fingerprint_is_refused(tmp_path):
    store = ResultStore(tmp_path, {"seed": 0})
    store.open()
    store.add({"index": torch.tensor([0])})
    store.mark_failed(0)
    with pytest.raises(ResultFolderError, match=r"holds the result of a different run \(seed: 0 there, 1 now"):
        ResultStore(tmp_path, {"seed": 1})
    ResultStore(tmp_path, {"seed": 1}, overwrite=True).open()


def test_a_run_that_failed_before_its_first_verdict_gives_way_to_another(tmp_path):
    first = ResultStore(tmp_path, {"seed": 0})
    first.open()
    # without a sign of its end it may still be at its first images
    with pytest.raises(ResultFolderError, match=r"was begun by a different run, .* \(seed: 0 there, .*--overwrite"):
        ResultStore(tmp_path, {"seed": 1})
    first.mark_failed(1)
    second = ResultStore(tmp_path, {"seed": 1})
    second.open()
    second.add({"index": torch.tensor([1])})
    with pytest.raises(ResultFolderError, match=r"another run has begun in .* meanwhile: choose another --name"):
        first.add({"index": torch.tensor([0])})
    first.mark_failed(0)
    assert second.judged() == {1}
    assert not any(second.shards.glob("failed_*"))


def test_a_test_that_crashed_before_its_first_verdict_is_begun_anew(advdef):
    with pytest.MonkeyPatch.context() as patch:
        Judged(patch, stop_after=0)
        with pytest.raises(RuntimeError, match="power"):
            advdef.digits("test", scenarios=SCENARIOS[:1])
    folder = advdef.digits("test", "--evaluation.seed=1", scenarios=SCENARIOS[:1])
    assert names(folder) == FILES


@pytest.mark.parametrize("content", ["", '{"schema": 1, "fing', "{}", "[]"])
def test_a_damaged_summary_is_named_and_nothing_is_lost(advdef, content):
    folder = advdef.digits("test", scenarios=SCENARIOS[:1], limit=4)
    (folder / "robustness.json").write_text(content)
    before = files_of(folder)
    with pytest.raises(ResultFolderError, match=r"^\S*/robustness\.json .*: .*--overwrite$"):
        advdef.digits("test", scenarios=SCENARIOS[:1], limit=4)
    assert files_of(folder) == before
    advdef.digits("test", "--overwrite", scenarios=SCENARIOS[:1], limit=4)
    assert result_of(folder)[0]["clean_accuracy"]["images"] == 4


@pytest.mark.parametrize("scenarios", [SCENARIOS[:1], SCENARIOS], ids=["finished", "extended"])
def test_damaged_rows_are_named_and_nothing_is_lost(advdef, scenarios):
    folder = advdef.digits("test", scenarios=SCENARIOS[:1], limit=4)
    path = folder / "robustness.npz"
    path.write_bytes(path.read_bytes()[:100])
    before = files_of(folder)
    with pytest.raises(ResultFolderError, match=r"^\S*/robustness\.npz cannot be read: .*--overwrite$"):
        advdef.digits("test", scenarios=scenarios, limit=4)
    assert files_of(folder) == before


def test_a_damaged_shard_is_named_and_the_others_stay(tmp_path):
    store = ResultStore(tmp_path, {})
    store.open()
    for index in range(2):
        store.add({"index": torch.tensor([index])})
    damaged = min(store.shards.glob("*.npz"))
    damaged.write_bytes(b"")
    for read in (store.judged, store.gather):
        with pytest.raises(ResultFolderError, match=rf"{damaged.name} cannot be read: remove this file"):
            read()
    damaged.unlink()
    assert len(store.judged()) == 1


def test_other_code_is_a_different_run(advdef, monkeypatch):
    advdef.digits("test", scenarios=SCENARIOS)
    monkeypatch.setattr("lightning_advdef.evaluation.fingerprint.code_hash", lambda *_: "changed")
    with pytest.raises(ResultFolderError, match=r"code: .* there, changed now"):
        advdef.digits("test", scenarios=SCENARIOS)


def test_no_process_waits_for_one_that_failed(tmp_path):
    store = ResultStore(tmp_path, {})
    store.open()
    store.mark_failed(1)
    for wait in (store.wait_until_complete, lambda: store.wait_for([0, 1])):
        with pytest.raises(RuntimeError, match="another process failed"):
            wait()
    store.open()
    store.mark_done(0, {"images": 3})
    assert store.wait_for([0]) == [{"images": 3}]


def test_markers_of_a_run_with_more_processes_are_forgotten(tmp_path):
    store = ResultStore(tmp_path, {})
    store.open()
    store.mark_failed(3)
    store.mark_done(1, {})
    store.open()
    assert [path.name for path in store.shards.iterdir()] == ["fingerprint.json"]
