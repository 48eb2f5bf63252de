"""What is said on the terminal: one readable sentence from the nested messages of the argument parser."""

from __future__ import annotations

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

# one console for all progress bars, since only then can they stand below each other
TERMINAL = Console(stderr=True)

_Item = TypeVar("_Item")

_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_UNKNOWN_CLASS = re.compile(
    r"(?:Expected a dot import path string|Undefined name|Unexpected import path format): (\S+)"
)
_CALLABLE = re.compile(r"Type \S.* expects a function or a callable class:\s*")
_OF_CALLABLE = re.compile(r"\. Got value: Namespace\(.*")
_GIVEN = re.compile(r"Problem with given class_path '([^']+)'|expects a function or .*?\bclass_path='([^']+)'")
_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_UNRECOGNIZED = re.compile(
    r"(?:unrecognized arguments: --|Subcommand '\w+' does not accept option ')(evaluation|trainer)\.(\w+)"
)
_GROUPS = {"evaluation": "lightning_advdef.callbacks.RobustnessEvaluation", "trainer": "pytorch_lightning.Trainer"}
_TYPE = re.compile(r"Expected a <class '([^']+)'>")
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value type: |Expected a path but |"
    r"Expected a <class 'NoneType'>|Problem with given class_path |Given value: (Namespace|NestedArg|\{)"
)

_NO_CLASS = "there is no class"


def with_bar(items: Sequence[_Item], doing: str, shown: bool) -> Iterable[_Item]:
    """The items, with a bar on the terminal while they are worked on, if it is shown."""
    return track(items, doing, console=TERMINAL, transient=True, disable=not (shown and TERMINAL.is_terminal))


def shorten(message: str) -> str:
    """What the user has to know of an error of jsonargparse, as ``key: reason``; other messages stay as they are.

    jsonargparse reports every type that an argument might have had, and repeats the whole configuration.
    """
    if match := _UNRECOGNIZED.match(message):
        return message + _meant(match[2], _GROUPS[match[1]])
    if not (_KEY.search(message) or _NOISE.search(message)):
        return message
    keys: list[str] = []
    reasons: dict[str, None] = {}
    class_path = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if match := _GIVEN.search(text):
            class_path = match[1] or match[2]
        while match := _KEY.match(text) or _CALLABLE.match(text):
            keys += [key for key in match.groups() if key not in keys]
            text = text[match.end() :]
        text = _OF_CALLABLE.sub("", text)
        if text and not _NOISE.match(text):
            reasons[_reword(text, keys, class_path)] = None
    if any(reason.startswith(_NO_CLASS) for reason in reasons):
        reasons = {reason: None for reason in reasons if not reason.startswith("got ")}
    reason = ", ".join(reasons) or "does not fit its type"
    return f"{'.'.join(keys)}: {reason}" if keys else reason


def _reword(text: str, keys: list[str], class_path: str) -> str:
    if match := _UNKNOWN_CLASS.match(text):
        choices = class_names(keys[-1].rpartition(".")[2]) if keys else []
        listed = f"; choose one of {', '.join(choices)}, or give the import path of your own" if choices else ""
        return f"{_NO_CLASS} {match[1]}{listed}"
    if match := _OPTION.match(text):
        name = match[1].partition(".")[0]
        return f"{class_path.rpartition('.')[2]} takes no {name}{_meant(name, class_path)}"
    if match := _TYPE.match(text):
        return f"expected {match[1]}"
    return text.removeprefix("Not of type Eps: ").replace("Given value: ", "got ").rstrip(".")


def _meant(option: str, class_path: str) -> str:
    """Arguments of a class that look like the one that it does not take."""
    close = difflib.get_close_matches(option, _arguments(pydoc.locate(class_path)))
    return f": did you mean {' or '.join(close)}?" if close else ""


def _arguments(found: object) -> list[str]:
    """Names that the constructor of a class takes, with those that it hands on to its base classes."""
    names: list[str] = []
    bases: tuple[Any, ...] = inspect.getmro(found) if inspect.isclass(found) else ()
    for base in bases:
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names += [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    return names


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
