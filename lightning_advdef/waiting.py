"""Waiting for another process by files, since a collective would time out meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

_POLL_SECONDS = 0.2


def wait_until(ready: Callable[[], bool], failed: Callable[[], bool]) -> None:
    """Returns as soon as another process is ready; its files must be on a file system that this one sees.

    Raises:
        RuntimeError: If another process failed.
    """
    while not ready():
        if failed():
            raise RuntimeError("another process failed: its message says why; run the same command again to continue")
        time.sleep(_POLL_SECONDS)
