"""What the terminal says."""

from lightning_advdef.evaluation.diagnostics.lines import count_line, spoken_lines


def finding(name, status="raised", following=""):
    numbers = {"measured": 0.5, "threshold": 0.05, "unit": "share of images"}
    return {"name": name, "status": status, **numbers, "meaning": f"{name} matters", "next": following}


def test_checks_are_counted_once_however_many_scenarios_raise_them():
    found = [finding("zero"), finding("zero"), finding("noise", "clear"), finding("steps", "unmeasured")]
    assert count_line(found) == "diagnostics: 1 raised, 1 clear, 1 unmeasured"


def test_what_is_raised_has_a_line_with_its_numbers():
    assert spoken_lines([finding("zero"), finding("noise", "clear")]) == [
        "zero: zero matters (share of images 0.5, threshold 0.05)"
    ]


def test_equal_scenarios_to_run_next_are_shown_once():
    first, second = (f"- name: next_{name}\n  attack: DeepFool\n" for name in "ab")
    other = "- name: next_c\n  attack: FGSM\n"
    found = [finding("a", following=first), finding("b", following=second), finding("c", following=other)]
    assert spoken_lines(found)[3:] == [
        "run next, under evaluation.scenarios:",
        "    - name: next_a",
        "      attack: DeepFool",
        "    - name: next_c",
        "      attack: FGSM",
    ]


def test_nothing_raised_says_nothing():
    assert spoken_lines([finding("a", "clear")]) == []
