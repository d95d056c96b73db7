"""How a command runs as a process: what its streams are, what becomes of its errors, and its exit status."""

import codecs
import errno
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from cifar_keras import __version__
from cifar_keras.errors import InterruptedRunError, UserError, unwritable
from cifar_keras.files.completion import SHELLS, completion

BAD_INPUT_STATUS = 2
INTERRUPTED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again

# What the system says to a program that writes to a pipe without a reader, or to a terminal that is gone.
_NOBODY_LISTENS = (errno.EPIPE, errno.EIO)

_ESCAPED = "cifar_keras.escaped"

PROGRAM = "cifar-keras"
COMMANDS = {
    "train": "fine-tune a network, export it, measure it, and report",
    "evaluate": "measure a run's SavedModel again, and on more than its own splits",
    "export": "convert a run's model for other runtimes, and compare each with it",
    "predict": "classify image files",
    "explain": "find near training images, draw a map of the features, and list suspect labels",
    "compare": "set runs beside one another",
    "prepare": "fetch data and weights ahead of a run",
}


def main() -> None:
    """Run `cifar-keras COMMAND ...`, which is `python -m cifar_keras.COMMAND ...`."""
    run(_dispatch)


def _dispatch(argv: Sequence[str]) -> None:
    name, *rest = argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        width = max(map(len, (*COMMANDS, "completion")))
        lines = [f"  {command:{width}}  {does}" for command, does in COMMANDS.items()]
        lines.append(f"  {'completion':{width}}  print what makes bash, zsh or fish complete commands and flags")
        print("\n".join([f"usage: {PROGRAM} COMMAND [--flag=value ...]; {PROGRAM} COMMAND --help", "", *lines]))
    elif name == "--version":
        print(__version__)
    elif name == "completion":
        if len(rest) != 1 or rest[0] not in SHELLS:
            raise UserError(
                f"{PROGRAM} completion takes one of {', '.join(SHELLS)}. Received: {' '.join(rest) or 'none'}"
            )
        flags = importlib.import_module("cifar_keras.flags")
        print(completion(rest[0], PROGRAM, {command: flags.choices_of(command) for command in COMMANDS}))
    elif name in COMMANDS:
        # A command is no part of any other module: it is looked up when it is run.
        importlib.import_module(f"cifar_keras.{name}").main([f"{PROGRAM} {name}", *rest])
    else:
        raise UserError(f"{PROGRAM} has the commands {', '.join(COMMANDS)}, completion. Received: {name}")


def run(command: Callable[[Sequence[str]], None]) -> None:
    """Run `command(sys.argv)`.

    Input that cannot be used, and a disk that cannot be written, become one message on stderr and exit status 2; a command that was
    asked to end, 75. Nobody has to listen: a stream that is closed, or whose reader has gone, takes what is written and drops it.
    """
    open_streams()
    if os.environ.pop("PYTHONWARNINGS", ""):  # of a parent program: a warning of some library would end the command
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
    try:
        command(sys.argv)
    except UserError as error:
        _end(f"error: {error}", BAD_INPUT_STATUS)
    except InterruptedRunError as error:
        _end(f"stopped: {error}", INTERRUPTED_STATUS)
    except KeyboardInterrupt:
        _end("stopped: the command was asked to end (SIGINT). It can be repeated", INTERRUPTED_STATUS)
    except Exception as error:
        reason = unwritable(error)
        if reason is None:
            raise
        file = getattr(error, "filename", None) or "a file that no error names"
        _end(f"error: the system does not allow it: {reason}. Received: {file}", BAD_INPUT_STATUS)


def _end(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


def open_streams() -> None:
    """Replace streams of the process that cannot be written by some that can.

    Characters that a stream's encoding does not have, and bytes of a file's name that are no text, are written escaped.
    """
    codecs.register_error(_ESCAPED, _escaped)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get its number, and what C++ prints
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            os.set_inheritable(number, True)
            if null != number:
                os.close(null)
        stream = getattr(sys, name)
        # A program that reads what is printed has put a stream of its own there.
        replaced = stream is not None and stream is not getattr(sys, f"__{name}__")
        if name != "stdin" and not replaced:
            setattr(sys, name, _lasting(number, stream))


def _lasting(number: int, stream: Any) -> io.TextIOWrapper:
    """Return a text stream like another one, on the same file descriptor, that outlives its reader."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "wb", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors=_ESCAPED,
        line_buffering=stream is None or stream.line_buffering,
        write_through=stream is not None and stream.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Write `\xe9` for a byte that is no text, which Python keeps as the character U+DCE9, and other characters as Python does."""
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(
        f"\\x{ord(each) - 0xDC00:02x}"
        if "\udc80" <= each <= "\udcff"
        else each.encode("ascii", "backslashreplace").decode()
        for each in characters
    ), error.end


class _Lasting(io.FileIO):
    """A file that becomes the null device when nobody reads it any more."""

    def write(self, content: Any) -> int:
        """Write, or drop what nobody takes."""
        try:
            return super().write(content) or 0
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for what C++ and other processes write too, and for what is written next
            os.close(null)
            if error.errno not in _NOBODY_LISTENS and self.fileno() == 1:  # results are not dropped in silence
                raise OSError(error.errno, error.strerror, "standard output") from error
            return len(content)
