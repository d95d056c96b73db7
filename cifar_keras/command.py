"""Run a command as a process: prepare its streams, report its errors, and set its exit status."""

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
# EX_TEMPFAIL of sysexits.h: try again.
INTERRUPTED_STATUS = 75

# Errors of a program that writes to a pipe without a reader, or to a terminal that is gone.
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
        # No module imports a command. It is looked up when it is run.
        importlib.import_module(f"cifar_keras.{name}").main([f"{PROGRAM} {name}", *rest])
    else:
        raise UserError(f"{PROGRAM} has the commands {', '.join(COMMANDS)}, completion. Received: {name}")


def run(command: Callable[[Sequence[str]], None]) -> None:
    """Run `command(sys.argv)`, and turn the errors that users can fix into a message and an exit status.

    Input that cannot be used, and a disk that cannot be written, become one message on stderr and exit status 2. A command that was
    asked to end exits with status 75. Output to a stream that is closed, or whose reader has gone, is dropped.
    """
    open_streams()
    # A parent program may have set this. Then the warning of some library could end the command.
    if os.environ.pop("PYTHONWARNINGS", ""):
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
    # Pillow warns of damaged EXIF data, with lines of its own code. The pixels are whole, and are decoded.
    warnings.filterwarnings("ignore", module=r"PIL\.")
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
    """Replace stdout and stderr by streams that outlive their reader, and connect closed streams to the null device.

    Characters that a stream's encoding does not have are written escaped, and so are bytes of a file's name that are no text.
    """
    codecs.register_error(_ESCAPED, _escaped)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        # The stream is closed. The next file to be opened would get its number, and with it what C++ prints.
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            os.set_inheritable(number, True)
            if null != number:
                os.close(null)
        stream = getattr(sys, name)
        # A program that captures the output has put its own stream there.
        replaced = stream is not None and stream is not getattr(sys, f"__{name}__")
        if name != "stdin" and not replaced:
            setattr(sys, name, _lasting(number, stream))


def _lasting(number: int, stream: Any) -> io.TextIOWrapper:
    """Return a text stream on a file descriptor, with the settings of another stream, that outlives its reader."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "wb", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors=_ESCAPED,
        line_buffering=stream is None or stream.line_buffering,
        write_through=stream is not None and stream.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Return escapes for the characters that cannot be encoded, and the position after them.

    A byte that is no text, which Python keeps as e.g. the character U+DCE9, becomes `\xe9`. Other characters are escaped as Python
    does it.
    """
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(
        f"\\x{ord(each) - 0xDC00:02x}"
        if "\udc80" <= each <= "\udcff"
        else each.encode("ascii", "backslashreplace").decode()
        for each in characters
    ), error.end


class _Lasting(io.FileIO):
    """A file that becomes the null device when nobody reads it any longer."""

    def write(self, content: Any) -> int:
        """Write the content, or drop it if nobody reads it. Return the number of bytes."""
        try:
            return super().write(content) or 0
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            # This also covers what C++ and other processes write, and all that is written later.
            os.dup2(null, self.fileno())
            os.close(null)
            # Results are not dropped in silence.
            if error.errno not in _NOBODY_LISTENS and self.fileno() == 1:
                raise OSError(error.errno, error.strerror, "standard output") from error
            return len(content)
