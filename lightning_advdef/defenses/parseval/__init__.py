"""Parseval networks (Cisse et al., 2017)."""

from lightning_advdef.defenses.parseval.module import ParsevalModule

__all__ = ["ParsevalModule"]
