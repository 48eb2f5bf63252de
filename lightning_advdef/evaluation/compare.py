"""``advdef compare``: two runs on the same images, and who wins."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_advdef.evaluation.comparison import Comparison, Contest, compare, write_winners
from lightning_advdef.evaluation.run import read_runs

_LISTED = 12  # indices of images named in the terminal; the file has all
_SMALL = 0.0001  # of a p-value; further digits say nothing more
_EPILOG = """The difference comes with its 95% interval over images, paired: images that both get right or both get
wrong do not blur it. p is that of McNemar's exact test, not corrected for the number of rows. Of stochastic
defenses "right" is the share of draws, and the larger share wins.

example: advdef compare runs/standard_digits runs/deep_defense_digits -o winners.csv"""


def parser() -> argparse.ArgumentParser:
    """The command line of ``advdef compare``."""
    made = argparse.ArgumentParser(
        prog="advdef compare",
        description="Says of two runs on the same images which is right where, on clean images, under each scenario "
        "that both ran, and in the worst case over these.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folders", nargs=2, metavar="[LABEL=]FOLDER", help="two run folders, A and B")
    made.add_argument("-o", "--output", type=Path, metavar="FILE.csv", help="write a row per image with the winners")
    return made


def main(arguments: Sequence[str]) -> None:
    """Prints the comparison, and writes the winners if asked to.

    Raises:
        ValueError: If the file is no ``.csv``, or both folders are the same.
    """
    settings = parser().parse_args(arguments)
    if settings.output is not None and settings.output.suffix != ".csv":
        raise ValueError(f"-o takes a file that ends in .csv, got {settings.output}")
    runs = read_runs(settings.folders)
    if len(runs) == 1:
        raise ValueError(f"{' and '.join(settings.folders)} are the same run: name two different folders")
    first, second = runs
    found = compare(first, second)
    print_comparison(found, (first.title, second.title))
    if settings.output is not None:
        write_winners(found, (first.title, second.title), settings.output)
        Console().print(f"written: {settings.output}", markup=False, highlight=False, soft_wrap=True)


def print_comparison(comparison: Comparison, titles: Sequence[str], console: Console | None = None) -> None:
    """Prints a row per quantity, the images that tell the two apart, and what could not be compared."""
    console = console or Console()
    console.print(difference_table(comparison, titles))
    for contest in comparison.contests:
        for letter, images in (("A", contest.only_first), ("B", contest.only_second)):
            if images:
                console.print(_listed(contest, letter, images), markup=False, highlight=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def difference_table(comparison: Comparison, titles: Sequence[str]) -> Table:
    """A row per quantity."""
    names = "  ".join(f"{letter}: {escape(title)}" for letter, title in zip("AB", titles, strict=True))
    caption = f"{len(comparison.contests[0].indices)} images; 95% paired intervals; p: McNemar's exact test"
    table = Table(title=f"{names}\n{caption}", title_style="dim", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for head in ("A", "B", "A - B", "only A", "only B", "p"):
        table.add_column(head, justify="right", no_wrap=True)
    for contest in comparison.contests:
        name = f"{contest.name} ({contest.access})" if contest.access else contest.name
        table.add_row(escape(name), *_cells(contest))
    return table


def _cells(contest: Contest) -> list[str]:
    found = contest.difference
    low, high = (100 * end for end in found.interval)
    return [
        f"{100 * float(contest.first.double().mean()):.2f}%",
        f"{100 * float(contest.second.double().mean()):.2f}%",
        f"{100 * found.value:+.2f} [{low:+.1f}, {high:+.1f}]",
        str(found.only_first),
        str(found.only_second),
        f"{found.p_value:.4f}" if found.p_value >= _SMALL else f"<{_SMALL}",
    ]


def _listed(contest: Contest, letter: str, images: Sequence[int]) -> str:
    more = len(images) - _LISTED
    named = ", ".join(map(str, images[:_LISTED])) + (f" and {more} more (-o writes all)" if more > 0 else "")
    return f"{contest.name}: only {letter} is right on image{'s' if len(images) > 1 else ''} {named}"
