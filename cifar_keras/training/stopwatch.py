"""Measure the minutes of each part of a run, over all processes that the run took; and the speed of an input pipeline."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from cifar_keras.config import PHASES

PARTS = ("prepare", *PHASES, "evaluate")
TIMED_BATCHES = 30


class Stopwatch:
    """A stopwatch that adds up the minutes of each part of a run."""

    def __init__(self) -> None:
        self._minutes = dict.fromkeys(PARTS, 0.0)
        self._started = time.monotonic()
        self._running: dict[str, float] = {}  # when each running part began

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to a part."""
        self._running[part] = time.monotonic()
        try:
            yield
        finally:
            self._minutes[part] += _minutes_since(self._running.pop(part))

    def minutes(self) -> dict[str, float]:
        """Return the minutes of each part until now, and those of the whole run as `total`."""
        parts = {
            part: minutes + (_minutes_since(self._running[part]) if part in self._running else 0.0)
            for part, minutes in self._minutes.items()
        }
        return parts | {"total": _minutes_since(self._started)}

    def restore(self, minutes: dict[str, float]) -> None:
        """Add the minutes that `minutes` returned in an earlier process of the run."""
        for part in PARTS:
            self._minutes[part] += minutes[part]
        self._started -= 60 * minutes["total"]


def _minutes_since(started: float) -> float:
    return (time.monotonic() - started) / 60


def measure_speed(batches: tf.data.Dataset) -> float | None:
    """Return the examples per second of a pipeline alone, over its first batches; None if it has only one batch."""
    sizes, times = [], []
    for inputs, _ in batches.take(1 + TIMED_BATCHES):
        sizes.append(inputs.shape[0])
        times.append(time.perf_counter())
    # Time starts at the first batch, because that one waits until the pipeline is built.
    return sum(sizes[1:]) / (times[-1] - times[0]) if len(sizes) > 1 else None
