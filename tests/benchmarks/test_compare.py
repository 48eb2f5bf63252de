"""Which peer is compared with, and what counts as equal."""

import json
import math

import pytest

from benchmarks.attacks.compare import agreement, fastest, read, rivals, strength, strongest, time_ratio, weaker
from benchmarks.attacks.measure import Record, to_json
from benchmarks.attacks.table import render
from benchmarks.attacks.wanted import wanted_time


def run(library, verdict="", wall=1.0, attack="PGD", sizes=(), seed=0, repeat=0, **more):
    verdict = verdict or "".join("1" if math.isinf(size) else "0" for size in sizes)
    settings = {"device": "cpu", "threads": 1, "torch": "2", "eps": 0.1, "steps": 10, "images": len(verdict)}
    return Record(
        "mnist_lenet_reference", attack, "linf", library, seed, repeat, **settings, wall=wall, cpu=wall,
        verdict=verdict, sizes=sizes, **more,
    )  # fmt: skip


def cell(*records):
    return {record.library: [other for other in records if other.library == record.library] for record in records}


def test_a_fast_but_weak_peer_is_no_rival():
    found = cell(run("ours", "1000"), run("foolbox", "1000", wall=5.0), run("torchattacks", "1110", wall=0.1))
    assert strongest(found) == "foolbox"
    assert rivals(found) == ["foolbox"]
    assert fastest(found) == "foolbox"


def test_half_a_point_counts_as_equal():
    found = cell(run("ours", "1" * 200), run("foolbox", "1" * 199 + "0", wall=5.0), run("art", "1" * 200, wall=2.0))
    assert strongest(found) == "foolbox"
    assert fastest(found) == "art"


def test_one_percent_of_the_median_norm_counts_as_equal():
    sizes = {"ours": 1.0, "foolbox": 0.99, "art": 0.995, "torchattacks": 1.02}
    found = cell(*(run(library, attack="DDN", sizes=(size,) * 3) for library, size in sizes.items()))
    assert strongest(found) == "foolbox"
    assert rivals(found) == ["foolbox", "art"]
    assert weaker(found, "foolbox") == pytest.approx(1 / 0.99)


def test_images_that_are_not_fooled_make_the_median_infinite():
    assert strength([run("ours", attack="DDN", sizes=(0.5, math.inf, math.inf))], 3) == math.inf
    assert weaker(cell(*(run(who, attack="DDN", sizes=(math.inf,)) for who in ("ours", "art"))), "art") == 1.0


def test_a_peer_that_saw_few_images_is_compared_on_these():
    found = cell(run("ours", "1000"), run("foolbox", "1100", wall=4.0), run("art", "1", wall=0.5))
    assert weaker(found, "art") == 0.0
    assert strongest(found) == "foolbox"
    assert time_ratio(found, "ours", "art", "wall") == pytest.approx(0.5)


def test_the_ratio_of_times_is_the_median_over_rounds():
    ours = [run("ours", "1", wall=wall, seed=seed) for seed, wall in enumerate((1.0, 1.0, 10.0))]
    theirs = [run("art", "1", wall=wall, seed=seed) for seed, wall in enumerate((2.0, 4.0, 10.0))]
    assert time_ratio(cell(*ours, *theirs), "ours", "art", "wall") == 0.5


def test_failed_runs_take_no_part():
    found = cell(run("ours", "10"), run("art", "00", failed="ImportError"), run("foolbox", "11"))
    assert rivals(found) == ["foolbox"]


def test_agreement_is_over_pairs_of_seeds():
    runs = [run("pyautoattack", verdict, seed=seed) for seed, verdict in enumerate(("1100", "1000"))]
    assert agreement(runs, runs, same_seed=False) == 0.75
    assert agreement(runs, runs, same_seed=True) == 1.0
    assert math.isnan(agreement(runs[:1], runs[:1], same_seed=False))


def test_of_equal_runs_the_last_one_counts(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(to_json(run("ours", "1", wall=wall))) + "\n" for wall in (9.0, 1.0)))
    ((where, found),) = read([path]).items()
    assert where == ("mnist_lenet_reference", "PGD", "linf")
    assert [record.wall for record in found["ours"]] == [1.0]


def test_the_tables_show_a_missed_demand_and_a_failure(tmp_path):
    path = tmp_path / "runs.jsonl"
    records = [
        run("ours", "1100", wall=2.0, forward=5.0, backward=5.0, needed=9.9),
        run("foolbox", "1100", wall=1.0, forward=10.0, backward=10.0),
        run("art", "1111", failed="ImportError"),
    ]
    path.write_text("".join(json.dumps(to_json(record)) + "\n" for record in records))
    text = render([path])
    assert "| 2.00 (2.00) | 0.57: **no** |" in text
    assert "10.0 (1.01 of needed)" in text
    assert "failed: ImportError" in text


@pytest.mark.parametrize(
    ("network", "attack", "passes", "peer", "ratio"),
    [
        ("mnist_lenet_adversarial", "AutoAttack", 1.0, 1.0, 0.95),
        ("mnist_lenet_adversarial", "MIM", 1.0, 1.0, None),
        ("mnist_lenet_reference", "PGD", 8.0, 10.0, 0.92),
        ("mnist_lenet_reference", "PGD", 1.0, 10.0, 0.35),
        ("mnist_lenet_reference", "DDN", 1.0, 1.0, None),
        ("mnist_lenet_reference", "DeepFool", 1.0, 1.0, 0.2),
        ("cifar10_resnet_adversarial", "DeepFool", 1.0, 1.0, 0.6),
    ],
)
def test_wanted_ratios(network, attack, passes, peer, ratio):
    assert wanted_time(network, attack, passes, peer) == (None if ratio is None else pytest.approx(ratio))
