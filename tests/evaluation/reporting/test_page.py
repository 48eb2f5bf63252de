"""The report in a browser, opened from disk."""

import html
import json
import re
import shutil
import subprocess

import pytest

from lightning_advdef.__main__ import run
from tests.evaluation.reporting.runs import RAISED, evaluated, with_pictures

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium"),
]
FRAME = """<!DOCTYPE html><body><iframe src="{page}" style="width:{width}px;height:2000px;border:0"></iframe><pre></pre>
<script>addEventListener("message", (event) => document.querySelector("pre").textContent = event.data)</script>"""
SCRIPT = """<script>
const texts = (selector) => [...document.querySelectorAll(selector)].map((each) => each.textContent);
const column = (number) => texts(`#rows tbody td:nth-child(${{number}})`);
const choose = (id, value, event) => {{
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event(event));
}};
const press = (id) => document.getElementById(id).click();
const sort = (number) => document.querySelector(`#rows th:nth-child(${{number}}) button`).click();
const found = {{}};
{steps}
parent.postMessage(JSON.stringify(found), "*");
</script></body>"""


def chromium(tmp_path, *arguments):
    """What the browser prints, page and console."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture
def browse(tmp_path):
    """Runs steps in the page of some runs, and gives what they found and what the console said."""

    def done(steps, *folders, width=390):
        page = tmp_path / "report.html"
        run(["report", *map(str, folders), "-o", str(page)])
        page.write_text(page.read_text().replace("</body>", SCRIPT.format(steps=steps)))
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME.format(page=page.as_uri(), width=width))
        printed = chromium(tmp_path, "--dump-dom", frame.as_uri())
        (text,) = re.findall(r"<pre>(.*?)</pre>", printed.stdout, re.DOTALL)
        assert text, printed.stderr
        return json.loads(html.unescape(text)), [line for line in printed.stderr.splitlines() if "CONSOLE" in line]

    return done


@pytest.mark.parametrize("width", [390, 1200])
def test_page_does_not_scroll_sideways_and_the_console_stays_empty(tmp_path, browse, width):
    long = with_pictures(evaluated(tmp_path / ("a_long_name_" * 8), diagnostics=[RAISED]))
    steps = """
    found.inner = innerWidth; found.scroll = document.documentElement.scrollWidth; found.n = document.images.length;
    """
    found, console = browse(steps, long, evaluated(tmp_path / "b"), width=width)
    assert found == {"scroll": width, "inner": width, "n": 24}
    assert console == []


def test_an_error_in_the_page_would_be_seen(tmp_path, browse):
    _, console = browse("console.error('planted');", evaluated(tmp_path / "a"))
    assert "planted" in " ".join(console)


def test_heads_sort_both_ways(tmp_path, browse):
    steps = "sort(7); found.up = column(7); sort(7); found.down = column(7); sort(1); found.images = column(1);"
    found, _ = browse(steps, evaluated(tmp_path / "a"))
    assert found["up"] == sorted(found["up"])
    assert found["down"] == sorted(found["up"], reverse=True)
    assert found["images"] == ["0", "1", "2", "3", "4"]


def test_filters_leave_the_images_that_they_name(tmp_path, browse):
    steps = """
    found.filters = texts("#verdict option");
    choose("verdict", found.filters.indexOf("broken by gray"), "change"); found.gray = column(1);
    choose("verdict", found.filters.indexOf("wrong without attack"), "change"); found.wrong = column(1);
    choose("verdict", found.filters.indexOf("right under every attack"), "change"); found.right = column(1);
    choose("verdict", found.filters.indexOf("broken by cw (l2)"), "change"); found.moved = column(1);
    choose("verdict", 0, "change");
    choose("label", "7", "input"); found.label = column(1); found.place = texts("#place");
    """
    found, _ = browse(steps, evaluated(tmp_path / "a"))
    assert (found["gray"], found["wrong"], found["label"]) == (["3"], ["4"], [])
    assert (found["right"], found["moved"]) == ([], ["0", "1", "2", "3"])
    assert found["place"] == ["no image"]


def test_another_model_shows_its_own_images(tmp_path, browse):
    steps = 'found.before = column(1).length; choose("model", 1, "change"); found.after = column(1).length;'
    found, _ = browse(steps, evaluated(tmp_path / "a"), evaluated(tmp_path / "b", count=20))
    assert found == {"before": 5, "after": 20}


def test_ten_thousand_images_turn_and_sort_within_a_second(tmp_path, browse):
    steps = """
    const start = performance.now();
    found.rows = column(1).length; press("last"); found.last = column(1).at(-1); sort(3); found.first = column(1)[0];
    found.seconds = (performance.now() - start) / 1000;
    """
    found, _ = browse(steps, evaluated(tmp_path / "a", count=10_000))
    assert (found["rows"], found["last"], found["first"]) == (50, "9999", "4")
    assert found["seconds"] < 1


@pytest.mark.parametrize(("arguments", "name"), [(["--force-dark-mode"], "dark.png"), ([], "light.png")])
def test_page_follows_the_colours_of_the_system(tmp_path, arguments, name):
    from PIL import Image

    page = tmp_path / "report.html"
    run(["report", str(evaluated(tmp_path / "a")), "-o", str(page)])
    chromium(tmp_path, *arguments, f"--screenshot={tmp_path / name}", page.as_uri())
    corner = Image.open(tmp_path / name).convert("L").getpixel((1, 1))
    assert corner < 64 if arguments else corner > 192


def test_whole_page_is_printed_with_all_columns_on_the_paper_and_without_what_one_clicks(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    page = tmp_path / "report.html"
    folders = [with_pictures(evaluated(tmp_path / f"network_{letter}")) for letter in "abcdef"]
    run(["report", *map(str, folders), "-o", str(page)])
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}", page.as_uri())
    printed, places = "", set()

    def note(text, outer, inner, *_):
        if text.strip():
            places.add(inner[4] * outer[0] + inner[5] * outer[2] + outer[4])

    for sheet in pypdf.PdfReader(tmp_path / "report.pdf").pages:
        places.clear()
        printed += sheet.extract_text(visitor_text=note)
        assert places
        assert min(places) > 0
        assert max(places) < sheet.mediabox.width - 20
    assert all(heading in printed for heading in ("All numbers", "Curves", "Every image", "What the numbers rest on"))
    assert all(folder.name in printed for folder in folders)
    assert "right under every attack" not in printed
