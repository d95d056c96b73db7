"""Ending a run in order when a person or the system asks for it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from cifar_keras.errors import InterruptedRunError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, `kill` or a scheduler, and a terminal that closes


class Interruption:
    """Listens for signals that ask for an end. Where the run can save itself first, it is asked to; elsewhere it ends at once."""

    def __init__(self) -> None:
        self._name = ""  # of the signal that came
        self._waits = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; only a process's main thread can.

        One that the process was started to ignore stays ignored: SIGHUP below `nohup`, SIGINT of a script's job in the background.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        earlier = {number: signal.signal(number, self._handle) for number in heeded}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for the block to end by itself, when it sees `asked`. A second signal ends it at once."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return bool(self._name)

    def end(self) -> None:
        """End the run.

        Raises:
            InterruptedRunError: always.
        """
        raise InterruptedRunError(
            f"the run was asked to end ({self._name}). The same command with --resume=auto goes on with it"
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._name = self.asked, signal.Signals(number).name
        if again or not self._waits:
            self.end()
