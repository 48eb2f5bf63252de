"""Errors that a caller may want to catch; every message is one sentence with the remedy."""

from typing import get_args


class DatasetNotFoundError(FileNotFoundError):
    """A data set is not where it was looked for."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the network."""


class ResultFolderError(FileExistsError):
    """A result folder holds the result of a different run, none, or one that cannot be read."""


class NotANumberError(RuntimeError):
    """A network gave NaN, so that an attack or a verdict would mean nothing."""


def require_choice(name: str, value: object, literal: object) -> None:
    """Refuses a word that a ``Literal`` does not have.

    Args:
        name: Name of the setting, as in a YAML file.
        value: What was given.
        literal: The ``Literal`` of what may be given.

    Raises:
        ValueError: If it is another.
    """
    choices = get_args(literal)
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(str, choices))}, got {value!r}")
