"""Files of flags, one or more on a line, read as a shell reads words. Standard library only."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from cifar_keras.errors import UserError

# A comment begins a word; shlex would begin one inside a word too. What is quoted or escaped is kept.
_COMMENT = re.compile(r"""(?<!\S)\#.*|('[^']*'|"(?:\\.|[^"\\])*"|\\.|.)""")
# What is in single quotes or escaped; in double quotes, which are kept, a shell fills in.
_LITERAL = re.compile(r"""'[^']*'|\\.|("(?:\\.|[^"\\])*")""")
_NAMES = ("-flagfile", "--flagfile")


def expanded(arguments: Sequence[str], above: tuple[Path, ...] = ()) -> list[str]:
    """Put what flagfiles say in place of the arguments that name them, up to a `--`.

    A line holds flags as a command line does: quotes keep spaces together, and what follows a `#` or a `//` at the beginning is a comment.
    Nothing is filled in for a `$`: what a run does is not to depend on variables.

    Args:
        arguments: of a command line, without the program's name.
        above: the flagfiles that these arguments come from.

    Raises:
        UserError: a flagfile is not named, cannot be read, includes itself, or has a line that cannot be understood, which is named.
    """
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument == "--":
            return [*found, argument, *rest]
        if name not in _NAMES:
            found.append(argument)
            continue
        file = value if equals else next(rest, "")
        if not file:  # a variable of the shell that is not set would start a run of the defaults
            raise UserError(f"--flagfile has to name a file. Received: {shlex.join(arguments)}")
        found += _read(Path(file), above)
    return found


def _read(file: Path, above: tuple[Path, ...]) -> list[str]:
    try:
        text = file.expanduser().read_text("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"--flagfile has to name a text file in UTF-8: {error}. Received: {file}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--flagfile cannot be read: {getattr(error, 'strerror', error)}. Received: {file}") from error
    if file in above:
        raise UserError(f"--flagfile: a file includes itself. Received: {' > '.join(map(str, (*above, file)))}")
    words: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        try:
            words += _words(line)
        except ValueError as error:
            raise UserError(f"--flagfile: line {number} of {file}: {error}. Received: {line.strip()}") from error
    return expanded(words, (*above, file))


def _words(line: str) -> list[str]:
    if line.lstrip().startswith("//"):
        return []
    words = shlex.split(_COMMENT.sub(_group, line))
    if any(mark in word for word in words for mark in "$`") and re.search(r"[$`]", _LITERAL.sub(_group, line)):
        raise ValueError("no shell reads it, so nothing is filled in for a $ or a ` (~ is the home folder; '$' is a $)")
    if words == ["--"]:
        raise ValueError("only flags are accepted")
    return words


def _group(found: re.Match[str]) -> str:
    """Keep of what a pattern found its group alone."""
    return found[1] or ""
