"""The network without any defense: the reference of every table."""

from lightning_advdef.defenses.base import DefenseModule


class StandardModule(DefenseModule):
    """Training by cross-entropy alone."""
