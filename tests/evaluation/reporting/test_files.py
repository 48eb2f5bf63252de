"""Reports as files: Markdown, CSV, RobustBench's record, and the HTML as text."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest

from lightning_advdef.__main__ import run
from lightning_advdef.errors import ResultFolderError
from tests.evaluation.reporting.runs import CLEAR, RAISED, bounded, evaluated, with_pictures

AUTOATTACK = bounded("aa", "white", 8 / 255, (True, True, False, False, False), attack="AutoAttack")


@pytest.fixture
def report(tmp_path):
    def made(suffix, *folders):
        path = tmp_path / "out" / f"report{suffix}"
        run(["report", *map(str, folders), "-o", str(path)])
        return path.read_text()

    return made


def test_csv_has_a_row_for_every_accuracy(tmp_path, report):
    rows = list(csv.DictReader(report(".csv", evaluated(tmp_path / "run")).splitlines()))
    found = {(row["quantity"], row["eps"]): float(row["accuracy"]) for row in rows}
    assert found[("clean", "")] == pytest.approx(0.8)
    assert found[("gray", "0.1")] == found[("paper protocol", "0.1")] == pytest.approx(0.6)
    assert found[("strong attack", "0.1")] == pytest.approx(0.2)
    assert ("cw", "") in found


def test_markdown_begins_with_diagnostics_that_speak(tmp_path, report):
    text = report(".md", evaluated(tmp_path / "run", diagnostics=[CLEAR, RAISED]))
    assert text.index("## Diagnostics") < text.index("## Paper protocol")
    assert "gradient_is_zero" in text
    assert "noise_flips" not in text
    assert "| run | linf 0.1 |" in text


def test_markdown_says_what_was_measured_and_its_tables_hold_any_name(tmp_path, report):
    text = report(".md", f"a|b={evaluated(tmp_path / '<run>', diagnostics=[RAISED])}")
    assert "(of the images 0.5, threshold 0.05)" in text
    assert "| a\\|b |" in text
    assert "<run>" not in text


def test_record_is_that_of_robustbench(tmp_path, report):
    record = json.loads(report(".json", evaluated(tmp_path / "run", scenarios=[AUTOATTACK], diagnostics=[CLEAR])))
    assert (record["dataset"], record["architecture"], record["eps"]) == ("cifar10", "LeNet", "8/255")
    assert (record["clean_acc"], record["autoattack_acc"], record["unreliable"]) == ("80.00", "40.00", False)
    assert record["number_forward_passes"] == 1
    assert (record["authors"], record["venue"], record["reported"]) == (None, None, None)


def test_record_has_no_autoattack_accuracy_without_autoattack(tmp_path, report):
    around = AUTOATTACK | {"access": "gray"}
    record = json.loads(report(".json", evaluated(tmp_path / "run", scenarios=[around], diagnostics=[RAISED])))
    assert (record["autoattack_acc"], record["unreliable"]) == (None, True)


def test_what_a_defense_costs_makes_no_record_unreliable(tmp_path, report):
    price = RAISED | {"name": "defense_costs_accuracy"}
    assert not json.loads(report(".json", evaluated(tmp_path / "run", diagnostics=[price])))["unreliable"]


def test_record_states_one_budget(tmp_path, report):
    two = [AUTOATTACK, bounded("aa2", "white", 0.1, (True,) * 5, attack="AutoAttack")]
    with pytest.raises(ResultFolderError, match=r"several budgets \(aa, aa2\)"):
        report(".json", evaluated(tmp_path / "run", scenarios=two))


def test_record_is_of_one_run(tmp_path, report):
    with pytest.raises(ValueError, match="one run, got 2 folders"):
        report(".json", evaluated(tmp_path / "a"), evaluated(tmp_path / "b"))


def test_other_suffixes_are_refused_before_anything_is_written(tmp_path):
    folder = evaluated(tmp_path / "run")
    with pytest.raises(ValueError, match=r"\.html, \.md, \.csv, \.json, got .*x\.pdf"):
        run(["report", str(folder), "-o", str(tmp_path / "a.csv"), "-o", str(tmp_path / "x.pdf")])
    assert not (tmp_path / "a.csv").exists()


class Tags(HTMLParser):
    """Names of all elements, addresses they load, and the text."""

    def __init__(self, text):
        super().__init__()
        self.names, self.addresses, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def test_page_needs_no_network_and_holds_every_section(tmp_path, report):
    folders = [evaluated(tmp_path / name, diagnostics=[RAISED]) for name in ("a", "b")]
    with_pictures(folders[0])
    text = report(".html", *folders)
    page = Tags(text)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    assert sum(address.startswith("data:image/png") for address in page.addresses) == 24
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles[0].startswith("Diagnostics")
    assert titles[1:] == [
        "Paper protocol and strong attack",
        "All numbers",
        "Curves",
        "Least and most robust images",
        "Every image",
        "What the numbers rest on",
    ]
    assert "vanishes & says nothing" in page.text
    assert {"svg", "table", "details"} <= page.names


def test_page_is_quiet_about_diagnostics_that_are_clear(tmp_path, report):
    assert "<h2>Diagnostics" not in report(".html", evaluated(tmp_path / "run", diagnostics=[CLEAR]))


def test_names_are_text_wherever_they_stand(tmp_path, report):
    folder = evaluated(tmp_path / "run", diagnostics=[RAISED | {"meaning": "<i>why</i>"}])
    text = report(".html", f"<b>bold</b></script>={folder}", f"plain={folder}")
    page = Tags(text)
    assert "i" not in page.names
    assert "<b>bold" not in text
    assert text.count("</script>") == 2
    assert "<b>bold</b></script>" in page.text


def test_rows_of_every_image_are_in_the_page(tmp_path, report):
    text = report(".html", evaluated(tmp_path / "run"))
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    (table,) = json.loads(data)
    columns = {column["title"]: column["values"] for column in table["columns"]}
    assert columns["clean"] == [1, 1, 1, 1, 0]
    assert columns["gray"] == [1, 1, 1, 0, 0]
    assert columns["cw (l2)"] == [0.1, 0.2, 0.3, 0.4, 0.5]
