"""Progress on stderr: a bar on a terminal, and a line every half minute if the output goes to a file or another program."""

import functools
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cifar_keras.files import environment

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY_SECONDS = 30


def progress(iterable: Iterable[Any] | None = None, *, desc: str, unit: str, **settings: Any) -> "tqdm[Any]":
    """Return a progress bar: `tqdm(...)` on a terminal, and elsewhere a bar that writes lines to stderr.

    Elsewhere, work that takes less than `EVERY_SECONDS` writes no line.

    Args:
        iterable: what the bar iterates over; None if the caller calls `update`.
        desc: name of the work.
        unit: name of what is counted.
        settings: other arguments of tqdm, such as `total`.
    """
    bar, lines = _bars()
    if sys.stderr.isatty():
        return bar(iterable, desc=desc, unit=unit, **settings)
    return lines(
        iterable,
        desc=desc,
        unit=f" {unit}",
        mininterval=EVERY_SECONDS,
        maxinterval=EVERY_SECONDS,
        delay=EVERY_SECONDS,
        bar_format="{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left",
        **settings,
    )


@functools.cache
def _bars() -> "tuple[type[tqdm[Any]], type[tqdm[Any]]]":
    """Return tqdm, and a tqdm that writes each of its states as a line."""
    # tqdm fails when it is imported if somebody has set one of its variables to a word, so these are removed before.
    environment.set_variables()
    from tqdm import tqdm

    # tqdm is generic in its type stubs alone: `tqdm[Any]` cannot be subclassed at run time.
    class Lines(tqdm):  # type: ignore[type-arg]
        """A progress bar that writes each of its states as a line."""

        @staticmethod
        def status_printer(file: Any) -> Callable[[str], None]:
            """Return the function that prints a line of the bar."""
            return lambda state: print(state, file=file, flush=True)

        def close(self) -> None:
            """End the bar. Do not repeat its last line, as tqdm would."""
            self.disable = True

    return tqdm, Lines
