"""Minutes of the parts of a run, over all processes that it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from cifar_keras.config import PHASES

PARTS = ("prepare", *PHASES, "evaluate")


class Stopwatch:
    """Minutes by name."""

    def __init__(self) -> None:
        self._minutes = dict.fromkeys(PARTS, 0.0)
        self._started = time.monotonic()
        self._running: dict[str, float] = {}  # when it began

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add what the block takes to its part."""
        self._running[part] = time.monotonic()
        try:
            yield
        finally:
            self._minutes[part] += _minutes_since(self._running.pop(part))

    def minutes(self) -> dict[str, float]:
        """Return the minutes of each part until now, and of the whole run as `total`."""
        parts = {
            part: minutes + (_minutes_since(self._running[part]) if part in self._running else 0.0)
            for part, minutes in self._minutes.items()
        }
        return parts | {"total": _minutes_since(self._started)}

    def restore(self, minutes: dict[str, float]) -> None:
        """Count in what `minutes` returned in an earlier process of the run."""
        for part in PARTS:
            self._minutes[part] += minutes[part]
        self._started -= 60 * minutes["total"]


def _minutes_since(started: float) -> float:
    return (time.monotonic() - started) / 60
