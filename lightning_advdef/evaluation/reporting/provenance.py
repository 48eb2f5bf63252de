"""What the numbers of a run rest on: data, weights, settings, versions, and how the checkpoint was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from lightning_advdef.evaluation.run import Run

_SHORT = 16  # digits of a hash that tell weights apart


def configuration(run: Run) -> str | None:
    """Content of ``config.yaml``, which the training in that folder wrote; None if there is none."""
    path = run.folder / "config.yaml"
    return path.read_text() if path.is_file() else None


def circumstances(run: Run) -> list[tuple[str, str]]:
    """Names and values, in the order in which they are shown; what a result does not say is left out."""
    result = run.result
    fingerprint = result.get("fingerprint", {})
    settings = {key: value for key, value in fingerprint.get("evaluation", {}).items() if key != "scenarios"}
    model = {key: value for key, value in fingerprint.get("model", {}).items() if not key.startswith("_")}
    versions = "  ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    found = [
        ("folder", str(run.folder)),
        ("judged", result.get("date", "")),
        ("images", f"{result['clean_accuracy']['images']} of the {result.get('summary_of', 'test')} split"),
        ("checkpoint chosen by", chosen_by(run)),
        ("weights", f"sha256 {fingerprint['weights'][:_SHORT]}..." if fingerprint.get("weights") else ""),
        ("draws of a stochastic defense", str(settings.get("draws", "")) if result.get("stochastic") else ""),
        ("values in use", _plain(result.get("in_use", {}))),
        ("versions", versions),
        ("device", result.get("device", "")),
        ("processes", str(result.get("world_size", ""))),
        ("numerics", _plain(result.get("flags", {}))),
        ("evaluation", _plain(settings)),
        ("data", _plain(fingerprint.get("data", {}))),
        ("model", _plain(model)),
    ]
    return [(name, value) for name, value in found if value]


def _plain(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )


def chosen_by(run: Run) -> str:
    """Which quantity of which split chose the checkpoint, as far as the training's configuration tells."""
    text = configuration(run)
    if text is None:
        return "not known: the configuration of the training is not in this folder"
    callbacks = (yaml.safe_load(text).get("trainer") or {}).get("callbacks") or []
    if isinstance(callbacks, Mapping):
        callbacks = [callbacks]
    monitors = [(callback.get("init_args") or {}).get("monitor") for callback in callbacks]
    watched = sorted({monitor for monitor in monitors if monitor})
    if not watched:
        return "nothing: model.ckpt holds the last epoch of this folder's training"
    splits = {monitor.partition("/")[0] for monitor in watched}
    split = "the validation split, carved from the training images" if splits == {"val"} else ", ".join(sorted(splits))
    return f"{', '.join(watched)} ({split}); model.ckpt itself holds the last epoch"
