"""How far something is: a bar on a terminal, and a line every half minute where the output goes to a file or another program."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

EVERY_SECONDS = 30


# tqdm is generic in its type stubs alone: `tqdm[Any]` cannot be subclassed at run time.
class _Lines(tqdm):  # type: ignore[type-arg]
    """A bar that writes lines."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Return the function that prints a line of the bar."""
        return lambda state: print(state, file=file, flush=True)

    def close(self) -> None:
        """End without the last line, which tqdm would write once more."""
        self.disable = True


def progress(iterable: Iterable[Any] | None = None, *, desc: str, unit: str, **settings: Any) -> "tqdm[Any]":
    """Return `tqdm(...)` of an iterable, or of none, for the terminal, or what writes lines to stderr.

    What takes less than `EVERY_SECONDS` writes none.

    Args:
        iterable: what is gone through; None where the caller says `update`.
        desc: what is done.
        unit: of what is counted.
        settings: others of tqdm, such as `total`.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc=desc, unit=unit, **settings)
    return _Lines(
        iterable,
        desc=desc,
        unit=f" {unit}",
        mininterval=EVERY_SECONDS,
        maxinterval=EVERY_SECONDS,
        delay=EVERY_SECONDS,
        bar_format="{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left",
        **settings,
    )
