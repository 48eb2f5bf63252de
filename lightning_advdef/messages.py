"""What is said on the terminal: one readable sentence from the nested messages of the argument parser."""

from __future__ import annotations

import inspect
import re

from rich.console import Console

# one console for all progress bars, since only then can they stand below each other
TERMINAL = Console(stderr=True)

_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_UNKNOWN_CLASS = re.compile(
    r"(?:Expected a dot import path string|Undefined name|Unexpected import path format): (\S+)"
)
_TYPE = re.compile(r"Expected a <class '([^']+)'>")
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value type: |Expected a path but |"
    r"Expected a <class 'NoneType'>|Problem with given class_path |Given value: (Namespace|NestedArg)"
)

_NO_CLASS = "there is no class"


def shorten(message: str) -> str:
    """What the user has to know of an error of jsonargparse, as ``key: reason``; other messages stay as they are.

    jsonargparse reports every type that an argument might have had, and repeats the whole configuration.
    """
    if not (_KEY.search(message) or _NOISE.search(message)):
        return message
    keys: list[str] = []
    reasons: dict[str, None] = {}
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        while match := _KEY.match(text):
            keys += [match[1]] if match[1] not in keys else []
            text = text[match.end() :]
        if text and not _NOISE.match(text):
            reasons[_reword(text, keys)] = None
    if any(reason.startswith(_NO_CLASS) for reason in reasons):
        reasons = {reason: None for reason in reasons if not reason.startswith("got ")}
    reason = ", ".join(reasons) or "does not fit its type"
    return f"{'.'.join(keys)}: {reason}" if keys else reason


def _reword(text: str, keys: list[str]) -> str:
    if match := _UNKNOWN_CLASS.match(text):
        choices = class_names(keys[-1].rpartition(".")[2]) if keys else []
        listed = f"; choose one of {', '.join(choices)}, or give the import path of your own" if choices else ""
        return f"{_NO_CLASS} {match[1]}{listed}"
    if match := _TYPE.match(text):
        return f"expected {match[1]}"
    return text.removeprefix("Not of type Eps: ").replace("Given value: ", "got ").rstrip(".")


def class_names(key: str) -> list[str]:
    """Short names that a configuration may give for ``key``; none for other keys."""
    from lightning_advdef import attacks, data, defenses, models, purifiers

    kinds = {
        "model": (defenses, defenses.DefenseModule),
        "data": (data, data.DataModule),
        "network": (models, models.Classifier),
        "attack": (attacks, attacks.Attack),
        "purifier": (purifiers, purifiers.Purifier),
        "surrogate": (attacks, attacks.Surrogate),
    }
    if key not in kinds:
        return []
    package, base = kinds[key]
    found = {name: getattr(package, name) for name in package.__all__}
    return [
        name
        for name, item in found.items()
        if inspect.isclass(item) and issubclass(item, base) and item is not base and not inspect.isabstract(item)
    ]
