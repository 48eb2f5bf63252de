"""Which kind of report a file's name asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from lightning_advdef.evaluation.run import Run
from lightning_advdef.files import whole_file


def write_reports(runs: Sequence[Run], paths: Sequence[Path]) -> None:
    """Writes each file in the format that its name ends in, and prints where it lies.

    Args:
        runs: What is reported.
        paths: ``.html``, ``.md``, ``.csv``, or ``.json`` for RobustBench's record of one run.

    Raises:
        ValueError: If a name ends otherwise, or a record is asked for with several runs.
    """
    for path in paths:
        if path.suffix not in FORMATS:
            raise ValueError(f"reports are written to {', '.join(FORMATS)}, got {path}; other files belong to --figure")
    for path in paths:
        text = FORMATS[path.suffix](runs)
        with whole_file(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        Console().print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def _html(runs: Sequence[Run]) -> str:
    from lightning_advdef.evaluation.reporting.content import read_report
    from lightning_advdef.evaluation.reporting.html import to_html

    return to_html(read_report(runs))


def _markdown(runs: Sequence[Run]) -> str:
    from lightning_advdef.evaluation.reporting.content import read_report
    from lightning_advdef.evaluation.reporting.text import to_markdown

    return to_markdown(read_report(runs))


def _csv(runs: Sequence[Run]) -> str:
    from lightning_advdef.evaluation.reporting.content import read_report
    from lightning_advdef.evaluation.reporting.text import to_csv

    return to_csv(read_report(runs))


def _record(runs: Sequence[Run]) -> str:
    from lightning_advdef.evaluation.reporting.robustbench import to_record

    if len(runs) != 1:
        raise ValueError(f"a .json file is RobustBench's record of one run, got {len(runs)} folders: give one")
    return to_record(runs[0])


FORMATS: dict[str, Callable[[Sequence[Run]], str]] = {
    ".html": _html,
    ".md": _markdown,
    ".csv": _csv,
    ".json": _record,
}
