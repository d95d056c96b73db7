"""Flagfiles: one or more flags on a line, which are read like the words of a shell. Standard library only."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from cifar_keras.errors import UserError

# A comment starts where a word does; shlex would also start one inside a word. Quoted and escaped text is kept.
_COMMENT = re.compile(r"""(?<!\S)\#.*|('[^']*'|"(?:\\.|[^"\\])*"|\\.|.)""")
# Text in single quotes and escaped characters, where a shell fills in nothing. Text in double quotes is kept: a shell fills in there.
_LITERAL = re.compile(r"""'[^']*'|\\.|("(?:\\.|[^"\\])*")""")
_NAMES = ("-flagfile", "--flagfile")


def expanded(arguments: Sequence[str], above: tuple[Path, ...] = ()) -> list[str]:
    """Return the arguments with each `--flagfile` replaced by the flags in its file, up to a `--`.

    A line of a flagfile holds flags like a command line does: quotes keep spaces together. A `#` at the beginning of a word starts a
    comment, and so does a `//` at the beginning of a line. Nothing is filled in for a `$`, because a run must not depend on variables.

    Args:
        arguments: of a command line, without the program's name.
        above: the flagfiles that these arguments come from, outermost first.

    Raises:
        UserError: a `--flagfile` names no file, or a flagfile cannot be read, includes itself, or has a line that cannot be
            understood. The message then names the line.

    Examples:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     print("--seed=1 --workdir='my runs/1'  # a comment", file=file, flush=True)
        ...     expanded([f"--flagfile={file.name}", "--resume=auto"])
        ['--seed=1', '--workdir=my runs/1', '--resume=auto']
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
        # With an unset shell variable as the file's name, a run with the default settings would start.
        if not file:
            raise UserError(f"--flagfile has to name a file. Received: {shlex.join(arguments)}")
        found += _read(Path(file), above)
    return found


def _read(file: Path, above: tuple[Path, ...]) -> list[str]:
    try:
        # Some editors begin a file with a byte order mark.
        text = file.expanduser().read_text("utf-8-sig")
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
    """Return only the group of a match, or "" if it did not take part."""
    return found[1] or ""
