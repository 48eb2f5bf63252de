"""Scenarios from the ``evaluation:`` group of a YAML file, as the command line reads them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

import lightning_advdef
from lightning_advdef import attacks, defenses  # noqa: F401 - a file names their classes by short name
from lightning_advdef.checkpoints import description_parser
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.messages import shorten

# beside the package in a checkout; an installed wheel has none
SUITES = Path(lightning_advdef.__file__).parents[1] / "configs" / "evaluation"


def read_scenarios(suite: str | Path) -> list[Scenario]:
    """The scenarios of a suite or an experiment.

    Args:
        suite: Path of a YAML file, or in a checkout the name of one in ``configs/evaluation``, such as ``quick``.

    Raises:
        ValueError: If there is no such file, or it holds no scenarios that can be read.
    """
    path = _find(suite)
    parser = description_parser()
    parser.add_argument("--scenarios", type=list[Scenario])
    try:
        found = parser.instantiate_classes(parser.parse_object({"scenarios": _described(path)}))
    except argparse.ArgumentError as error:
        raise ValueError(f"{path}: {shorten(str(error))}") from None
    scenarios: list[Scenario] = found.scenarios
    return scenarios


def _find(suite: str | Path) -> Path:
    for path in (Path(suite), SUITES / f"{suite}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in SUITES.glob("*.yaml")))
    raise ValueError(
        f"there is no suite {str(suite)!r}: give the path of a YAML file" + (f", or one of {known}" if known else "")
    )


def _described(path: Path) -> Any:
    """A second file of the command line appends with ``scenarios+``, a first one may say ``scenarios``."""
    content = yaml.safe_load(path.read_text())
    group = content.get("evaluation") if isinstance(content, dict) else None
    if not isinstance(group, dict) or not {"scenarios", "scenarios+"} & group.keys():
        raise ValueError(f"{path} has no scenarios under evaluation: give a suite as advdef test takes it")
    return group["scenarios+"] if "scenarios+" in group else group["scenarios"]
