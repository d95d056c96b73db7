"""Files of a run that appear whole or not at all."""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cifar_keras.errors import UserError

_NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a power cut, finds the old content or the new one and nothing between.

    The bytes go to a hidden file beside it, onto the disk, and only then take its name.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full. The old file is as it was.
    """
    # `tempfile` would make it readable by its owner only, and the rename would keep that; `open` heeds the user's umask.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            flush(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync(path.parent)


def write_picture(flag: str, path: Path, picture: bytes) -> None:
    """Write a PNG file whose place a flag names.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        write_whole(path, picture)
    except OSError as error:
        raise UserError(f"--{flag} cannot be written: {error.strerror}. Received: {path}") from error


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden place beside a file or folder, and put it in place after the block; where the block fails, nothing stays.

    For libraries that write by themselves. The hidden place has the ending of the right one, because some insist on it.
    """
    beside = path.with_name(f".{path.name}")
    _remove(beside)  # of a process that was killed
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
    """Rename a file, or a folder with all that is in it, once its bytes are on the disk. It replaces what has the name."""
    for part in [beside, *beside.rglob("*")]:
        sync(part)
    if path.is_dir():  # a folder does not take the place of another in one step
        earlier = path.with_name(f".{path.name}.earlier")
        shutil.rmtree(earlier, ignore_errors=True)
        path.replace(earlier)
        beside.replace(path)
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Put the entries of a folder, or the bytes of a file, onto the disk: a rename is one, and reaches it later than the bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def flush(descriptor: int) -> None:
    """Put what an open file or folder holds onto the disk, as far as its file system can be asked to.

    Raises:
        OSError: the disk failed (EIO), or is full.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:  # network file systems know of no such call for folders, some for nothing
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON: keys in their order, indented by 2, a newline at the end; whole or not at all.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        TypeError: something is of a type that JSON does not have, such as a NumPy scalar.
        OSError: as in `write_whole`.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    write_whole(path, (text + "\n").encode("utf-8"))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}. Received: {path}") from error
    except ValueError as error:  # malformed JSON or malformed UTF-8
        raise UserError(f"{path.name} is not valid JSON: {error}. Received: {path}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Return the values in a file of one JSON value a line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not JSON.
    """
    return [json.loads(line, parse_constant=_refuse_constant) for line in path.read_text("utf-8").splitlines()]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
