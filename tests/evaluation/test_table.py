"""The table in the terminal says what a number is: budget, parts of a cascade, rounding, diagnostics."""

import io

import pytest
from rich.console import Console

from lightning_advdef.evaluation.table import comparison_table, print_results, print_table
from tests.conftest import raised, result_of, scenario
from tests.evaluation.results import attack_of, evaluated, log


def accuracy(value):
    return {"value": value, "interval": [value - 0.1, value + 0.1], "images": 50}


def part(name, cumulative, alone):
    return {"name": name, "cumulative_accuracy": accuracy(cumulative), "accuracy": alone and accuracy(alone)}


def run(**changes):
    row = {
        "name": "cascade",
        "access": "white",
        "norm": "linf",
        "eps": 8 / 255,
        "robust_accuracy": accuracy(0.5),
        "passes": {"forward": 12.0, "backward": 3.5},
        "parts": [part("first", 0.7, 0.7), part("second", 0.5, 0.6), part("third", 0.5, None)],
    }
    return {"clean_accuracy": accuracy(0.9), "scenarios": [row | changes], "worst_case": []}


def lines(*results):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table({f"run{number}": result for number, result in enumerate(results)}))
    return [
        [cell.strip() for cell in line.strip().strip("│").split("│")]
        for line in console.export_text().splitlines()
        if "│" in line
    ]


def test_parts_of_a_cascade_show_what_is_left_after_them_and_what_they_do_alone():
    shown = lines(run())
    assert ["after first", "", "70.00%"] in shown
    assert ["after second", "", "50.00% (60.00% alone)"] in shown
    assert ["after third", "", "50.00%"] in shown


def test_parts_of_a_cascade_show_what_a_detector_saves():
    rejecting = part("second", 0.5, None) | {"cumulative_right_or_rejected": accuracy(0.8), "right_or_rejected": None}
    shown = lines(run(parts=[part("first", 0.7, 0.7), rejecting]))
    assert ["after second, right or rejected", "", "80.00%"] in shown
    assert not any("first, right or rejected" in line[0] for line in shown)


def test_a_row_states_its_budget_and_its_access_once():
    shown = lines(run())
    assert ["cascade", "white", "50.00% [40.0, 60.0]"] in shown
    assert ["budget", "", "linf 0.03137"] in shown
    assert [line[1] for line in shown].count("white") == 1


def test_rounding_is_shown_where_it_was_judged():
    shown = lines(run(rounded_accuracy=accuracy(0.55)), run())
    assert ["rounded to 8 bits", "", "55.00% [45.0, 65.0]", ""] in shown
    assert not any("rounded" in line[0] for line in lines(run()))


def test_runs_of_other_budgets_stand_side_by_side():
    assert ["budget", "", "linf 0.03137", "linf 0.1"] in lines(run(), run(eps=0.1))


def test_access_of_every_run_is_shown():
    shown = lines(run(), run(access="gray"), run())
    assert [line[1] for line in shown if line[0] == "cascade"] == ["white | gray"]


@pytest.mark.parametrize(
    ("attacks", "told"),
    [
        ([attack_of("PGD", steps=20), attack_of("PGD", steps=20, eps=0.1)], None),
        ([attack_of("PGD", steps=20, eps=0.1), attack_of("PGD", steps=10, eps=0.2)], ["steps=20", "steps=10"]),
        ([attack_of("PGD", steps=20), attack_of("FGSM")], ["PGD", "FGSM"]),
        (
            [attack_of("Cascade", attacks={"a": attack_of(name, steps=1)}) for name in ("PGD", "APGD")],
            ["attacks.a=PGD", "attacks.a=APGD"],
        ),
    ],
)
def test_attacks_of_one_name_that_differ_say_in_what(attacks, told):
    shown = lines(*(run(attack=attack) for attack in attacks))
    assert [line[2:] for line in shown if line[0] == "attack"] == ([told] if told else [])


def test_norms_are_shown_under_both_conventions():
    norms = {"mean_excluded": 0.4, "median_excluded": 0.3, "mean_included": 0.2, "median_included": None}
    shown = lines(run(rho=0.1, norms=norms, norm="l2"), run())
    assert ["mean | median, right images", "", "0.4000 | 0.3000 (l2)", ""] in shown
    assert ["mean | median, wrong as 0", "", "0.2000 | - (l2)", ""] in shown


def test_an_attack_without_a_budget_states_the_norm_that_it_spends():
    free = run(mean_l2=0.25)
    del free["scenarios"][0]["eps"]
    assert ["mean l2 norm", "", "0.2500", ""] in lines(free, run(mean_l2=0.5))


def test_seconds_per_epoch_stand_where_the_training_logged_them(tmp_path):
    evaluated(tmp_path / "a", [0.1] * 4)
    evaluated(tmp_path / "b", [0.1] * 4)
    log(tmp_path / "a", {"train/seconds_per_epoch": {1: 2.0}})
    console = Console(width=200, record=True, file=io.StringIO())
    print_results([tmp_path / "a", tmp_path / "b"], console)
    (line,) = [line for line in console.export_text().splitlines() if "seconds per epoch" in line]
    assert line.replace("│", " ").split() == ["seconds", "per", "epoch", "2.00"]


@pytest.fixture
def cascade():
    def made(eps=0.1, **options):
        attacks = {
            "pgd": {"class_path": "PGD", "init_args": {"eps": eps, "steps": 10}},
            "square": {"class_path": "Square", "init_args": {"eps": eps, "queries": 60}},
        }
        return [scenario("all", "Cascade", attacks=attacks, **options)]

    return made


def test_a_query_attack_that_beats_gradients_is_raised_and_printed(advdef, cascade, capsys):
    folder = advdef.digits("test", "--model=tests.toys.RoundedInput", scenarios=cascade(eps=0.5), limit=40)
    found = raised(result_of(folder)[0])["query_part_gains"]
    assert found["scenario"] == "all"
    capsys.readouterr()
    print_results([folder], Console(width=1000))
    printed = capsys.readouterr().out
    assert found["meaning"].startswith("all: square, which sees scores alone")
    assert found["meaning"] in printed
    assert "- name: next_query_part_gains_all" in printed
    assert "after square" in printed


def test_a_query_attack_that_adds_nothing_is_not_raised(advdef, cascade):
    folder = advdef.digits("test", scenarios=cascade(eps=0.3), limit=40)
    assert raised(result_of(folder)[0]) == {}


def test_diagnostics_that_do_not_speak_are_one_line(capsys):
    findings = [
        {"name": name, "status": status} for name, status in (("a", "clear"), ("b", "clear"), ("c", "unmeasured"))
    ]
    print_table({"run": run() | {"diagnostics": findings}}, console=Console(width=1000))
    assert "diagnostics: 2 clear, 1 unmeasured\n" in capsys.readouterr().out


def test_parts_that_attack_everything_have_an_accuracy_of_their_own(advdef, cascade):
    (found,) = result_of(advdef.digits("test", scenarios=cascade(eps=0.05, cascade=False)))[0]["scenarios"]
    pgd, square = found["parts"]
    assert pgd["accuracy"] == pgd["cumulative_accuracy"]
    assert square["accuracy"]["value"] >= square["cumulative_accuracy"]["value"] == found["robust_accuracy"]["value"]
