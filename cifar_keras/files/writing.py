"""Write files that appear whole or not at all, and read JSON files."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from cifar_keras.errors import UserError

# A list of numbers as `json.dumps` indents it. A JSON string has no line break, so no string matches.
_LIST_OF_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]*\]")
# Errors of file systems that do not offer to flush.
_NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that readers find either the old content or the new one, and nothing between, even after a power cut.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full. The old file is as it was.
    """
    with opened_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def opened_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which is at `path` after the block: whole, or not at all if the block fails.

    The bytes go to a hidden file in the same folder. That file takes the right name once its bytes are on the disk.

    Raises:
        OSError: as in `write_whole`.
    """
    # `tempfile` would make the file readable by its owner only, and the rename would keep that. `open` respects the user's umask.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            flush(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync(path.parent)


def write_picture(flag: str, path: Path, picture: bytes) -> None:
    """Write a PNG file to the path that a flag names.

    Raises:
        UserError: the file cannot be written there.
    """
    try:
        write_whole(path, picture)
    except OSError as error:
        raise UserError(f"--{flag} cannot be written: {error.strerror}. Received: {path}") from error


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden path next to `path`, and rename what the block wrote there to `path` after the block.

    If the block fails, nothing is left of it. This is for libraries that write by themselves, files or folders. The hidden path has
    the same ending as `path`, because some libraries insist on it.
    """
    beside = path.with_name(f".{path.name}")
    # A process that was killed may have left something there.
    _remove(beside)
    try:
        yield beside
        put_in_place(beside, path)
    except BaseException:
        _remove(beside)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def put_in_place(beside: Path, path: Path) -> None:
    """Rename a file, or a folder with all its content, once its bytes are on the disk.

    It replaces a file or folder that already has the name.
    """
    for part in [beside, *beside.rglob("*")]:
        sync(part)
    # A folder cannot replace another folder in one step.
    if path.is_dir():
        earlier = path.with_name(f".{path.name}.earlier")
        shutil.rmtree(earlier, ignore_errors=True)
        path.replace(earlier)
        beside.replace(path)
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush the entries of a folder, or the bytes of a file, to the disk.

    A rename changes entries of a folder, and reaches the disk later than the bytes of the file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def flush(descriptor: int) -> None:
    """Flush the content of an open file or folder to the disk, if its file system offers this.

    Raises:
        OSError: the disk failed (EIO) or is full.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network file systems do not offer this for folders, and some of them not for files either.
        if error.errno not in _NOT_OFFERED:
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all.

    Keys keep their order. Levels are indented by 2, but a list of numbers is one line. The file ends with a newline.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        TypeError: something is of a type that JSON does not have, such as a NumPy scalar.
        OSError: as in `write_whole`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "result.json", {"accuracy": 0.5, "interval": [0.4, 0.6]})
        ...     print(Path(folder, "result.json").read_text())
        {
          "accuracy": 0.5,
          "interval": [0.4, 0.6]
        }
        <BLANKLINE>
    """
    indented = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    text = _LIST_OF_NUMBERS.sub(
        lambda numbers: " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]"), indented
    )
    write_whole(path, (text + "\n").encode("utf-8"))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON, or an object in it has a name twice.
    """
    try:
        return json.loads(
            path.read_text("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_names
        )
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}. Received: {path}") from error
    # Malformed JSON or malformed UTF-8, or brackets within more brackets than Python can follow.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is not valid JSON: {error}. Received: {path}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Return the values in a file that has one JSON value on each line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not JSON.
    """
    return [json.loads(line, parse_constant=_refuse_constant) for line in path.read_text("utf-8").splitlines()]


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs. Python alone would keep the last value of a repeated name, and say nothing."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
