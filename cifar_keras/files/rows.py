"""Write the rows of a table one after the other, as a CSV, JSON Lines or Parquet file that appears whole or not at all."""

import contextlib
import csv
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cifar_keras.errors import UserError
from cifar_keras.files import paths, writing

# Rows that are in memory before a Parquet file gets them.
ROW_GROUP = 10_000

# Text, a number of 32 bits, or None where there is nothing.
Value = str | float | None
Row = Mapping[str, Value]
# The type of each column, `str` or `float`, by its name.
Columns = Mapping[str, type]


class _Writer(Protocol):
    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


class _Csv:
    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        # Lines end as RFC 4180 says. Then the library quotes line breaks of both kinds.
        self._writer = csv.DictWriter(self._text, list(columns))
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        self._writer.writerow(row)

    def close(self) -> None:
        # It would close the file beneath it, whose bytes are not on the disk yet.
        self._text.detach()


class _JsonLines:
    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._file, self._columns = file, columns

    def write(self, row: Row) -> None:
        values = {name: row.get(name) for name in self._columns}
        self._file.write(json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        pass


class _Parquet:
    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        import pyarrow as arrow
        from pyarrow import parquet

        types = {str: arrow.string(), float: arrow.float32()}
        self._schema = arrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._table: Callable[..., Any] = arrow.Table.from_pylist
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._write_group()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        self._writer.write_table(self._table(self._rows, self._schema))
        self._rows = []


_WRITERS: dict[str, Callable[[BinaryIO, Columns], _Writer]] = {
    ".csv": _Csv,
    ".jsonl": _JsonLines,
    ".parquet": _Parquet,
}


def check_writable(flag: str, path: Path) -> None:
    """Check that a table can be written to the path that a flag names. Nothing is written.

    Raises:
        UserError: the suffix is unknown, a package for it is missing, or the folder is missing or cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"--{flag} has to end with {', '.join(_WRITERS)}. Received: {paths.shown(path)}")
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else "there is no such folder"
        raise UserError(f"--{flag} cannot be written: {reason}. Received: {paths.shown(path)}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"--{flag} cannot be written: its folder is read-only. Received: {paths.shown(path)}")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"--{flag} as a Parquet file needs pyarrow; `pip install '.[parquet]'` installs it. Received: {paths.shown(path)}"
        )


@contextlib.contextmanager
def rows_written(flag: str, path: Path, columns: Columns) -> Iterator[Callable[[Row], None]]:
    """Yield a function that adds a row to a table. The table is at `path` after the block, whole, or not at all if the block fails.

    Args:
        flag: the flag that names the path, for the message.
        path: a file that `check_writable` accepts. Its suffix says the format.
        columns: the columns, in their order. A row that lacks one is empty there.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with (
            writing.opened_whole(path) as file,
            # After a block that fails too, because pyarrow would write to the file when it is closed already.
            contextlib.closing(_WRITERS[path.suffix.lower()](file, columns)) as writer,
        ):
            yield writer.write
    except OSError as error:
        raise UserError(f"--{flag} cannot be written: {error.strerror}. Received: {paths.shown(path)}") from error


def name_as_text(path: Path) -> str:
    r"""Return the name of a file as text that no other file shares.

    A name that is no text (bytes that are not UTF-8) becomes a `file://` address with these bytes as %XX. No other path begins so,
    because behind its first character a path never has two slashes in a row.

    Examples:
        >>> name_as_text(Path("photos/cat, asleep.jpg"))
        'photos/cat, asleep.jpg'
        >>> name_as_text(Path(os.fsdecode(b"/photos/caf\xe9.jpg")))
        'file:///photos/caf%E9.jpg'
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.absolute().as_uri()
    return str(path)
