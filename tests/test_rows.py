"""Tables that are written row by row: what other libraries read from them, and what is left when something fails."""

import csv
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from pyarrow import parquet

from cifar_keras.errors import UserError
from cifar_keras.files import rows

COLUMNS = {"filename": str, "label": str, "prob": float, "error": str}
NAMES = [
    b"plain.png",
    b'a,b "c".png',
    b"two\nlines.png",
    b"return\r.png",
    "ünï 猫.png".encode(),
    b"caf\xe9.png",
    b" =1+1 .png",
]


def by_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: (float(value) if name == "prob" else value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def by_json(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def by_arrow(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return found


READERS = {".csv": by_csv, ".jsonl": by_json, ".parquet": by_arrow}


def name_of(text: str) -> bytes:
    """The name of the file that a table means, as the page of predictions says to find it."""
    return unquote_to_bytes(text.removeprefix("file://")) if text.startswith("file://") else text.encode()


@pytest.mark.parametrize("suffix", READERS)
def test_every_name_and_number_comes_back(suffix: str, tmp_path: Path) -> None:
    files = [Path("/photos") / os.fsdecode(name) for name in NAMES]
    probabilities = np.random.default_rng(0).random(len(files), np.float32)
    written = [
        {"filename": rows.name_as_text(file), "label": "cat", "prob": float(str(probability)), "error": None}
        for file, probability in zip(files, probabilities, strict=True)
    ]
    broken: rows.Row = {"filename": "broken.png", "error": 'it is "damaged",\nsay we'}
    with rows.rows_written("output", tmp_path / f"p{suffix}", COLUMNS) as write:
        for row in [*written, broken]:
            write(row)
    found = READERS[suffix](tmp_path / f"p{suffix}")
    assert [name_of(row["filename"]) for row in found[:-1]] == [b"/photos/" + name for name in NAMES]
    np.testing.assert_array_equal(np.array([row["prob"] for row in found[:-1]], np.float32), probabilities)
    assert found[-1] == {"filename": "broken.png", "label": None, "prob": None, "error": broken["error"]}
    assert [list(row) for row in found] == [list(COLUMNS)] * len(found)
    assert [each.name for each in tmp_path.iterdir()] == [f"p{suffix}"]


def test_a_parquet_file_is_written_in_groups_of_rows(tmp_path: Path) -> None:
    with rows.rows_written("output", tmp_path / "p.parquet", COLUMNS) as write:
        for number in range(2 * rows.ROW_GROUP + 1):
            write({"filename": f"{number}.png", "prob": 0.5})
    file = parquet.ParquetFile(tmp_path / "p.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [10_000, 10_000, 1]
    assert [str(field.type) for field in file.schema_arrow] == ["string", "string", "float", "string"]


@pytest.mark.parametrize("suffix", READERS)
def test_a_table_without_rows_can_be_read(suffix: str, tmp_path: Path) -> None:
    with rows.rows_written("output", tmp_path / f"p{suffix}", COLUMNS):
        pass
    assert READERS[suffix](tmp_path / f"p{suffix}") == []


@pytest.mark.parametrize("suffix", READERS)
def test_a_block_that_fails_leaves_the_old_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), rows.rows_written("output", path, COLUMNS) as write:
        write({"filename": "a.png"})
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("name", "message", "prepare"),
    [
        ("p.xlsx", r"has to end with \.csv, \.jsonl, \.parquet", None),
        ("p", r"has to end with \.csv, \.jsonl, \.parquet", None),
        ("gone/p.csv", "cannot be written: there is no such folder", None),
        ("folder.csv", "cannot be written: it is a folder", None),
        ("p.parquet", r"as a Parquet file needs pyarrow; `pip install '\.\[parquet\]'` installs it", no_pyarrow),
    ],
)
def test_what_cannot_be_written_is_refused(
    name: str,
    message: str,
    prepare: Callable[[pytest.MonkeyPatch], None] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder.csv").mkdir()
    if prepare:
        prepare(monkeypatch)
    with pytest.raises(UserError, match=rf"^--output {message}\. Received: {tmp_path / name}$"):
        rows.check_writable("output", tmp_path / name)


def test_a_folder_that_vanishes_is_named(tmp_path: Path) -> None:
    """The folder vanishes while rows are written, as on a share that is gone."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with (
        pytest.raises(UserError, match=r"^--output cannot be written: No such file or directory\. Received: .*p\.csv$"),
        rows.rows_written("output", folder / "p.csv", COLUMNS) as write,
    ):
        write({"filename": "a.png"})
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
