"""End a run in an orderly way when a person or the system asks for it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from cifar_keras.errors import InterruptedRunError

# Sent by Ctrl-C, by `kill` or a scheduler, and by a terminal that closes.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """A listener for the signals that ask a run to end.

    Inside `waiting` a signal only sets `asked`, so that the run can save a checkpoint first. Elsewhere a signal ends the run at once.
    """

    def __init__(self) -> None:
        self._name = ""  # of the signal that came
        self._waits = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block.

        Only the main thread of a process can handle signals; in other threads this does nothing. A signal that the process was started
        to ignore stays ignored: SIGHUP under `nohup`, SIGINT in a script's background job.
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
        """Let the block end by itself when it sees `asked`. A second signal ends the run at once."""
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
