import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cifar_keras.errors import UserError
from cifar_keras.files.writing import put_in_place, read_json, sync, write_json, write_whole, written_beside


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text()),
    lambda inner: st.one_of(st.lists(NUMBERS), st.lists(inner), st.dictionaries(st.text(), inner)),
)


@hypothesis.given(VALUES)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        write_json(path, value)
        assert repr(json.loads(path.read_text("utf-8"))) == repr(value)


def test_a_list_of_numbers_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"interval": [0.5, -1e-7], "counts": [[1, 2], [3, 4]], "names": ["a", "[\n 1 ]"], "none": []})
    assert path.read_text().splitlines() == [
        "{",
        '  "interval": [0.5, -1e-07],',
        '  "counts": [',
        "    [1, 2],",
        "    [3, 4]",
        "  ],",
        '  "names": [',
        '    "a",',
        '    "[\\n 1 ]"',
        "  ],",
        '  "none": []',
        "}",
    ]


def test_write_whole_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "result.bin"
    write_whole(path, b"old")
    write_whole(path, b"\x00new\r\n")
    assert path.read_bytes() == b"\x00new\r\n"
    assert names_in(tmp_path) == ["result.bin"]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    # A process that may write 1,000 bytes a file runs into the limit as it would into a full disk.
    path = tmp_path / "result.bin"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys, pathlib; from cifar_keras.files.writing import write_whole;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "write_whole(pathlib.Path(sys.argv[1]), bytes(5000))"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["result.bin"]


def test_a_failing_rename_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(OSError, match="taken"):
        write_whole(path, b"new")
    assert names_in(tmp_path) == ["taken"]


def test_a_missing_folder_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "result.bin", b"new")
    assert names_in(tmp_path) == []


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "result.bin", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result.bin").stat().st_mode) == 0o644


def test_json_comes_back_in_its_order(tmp_path: Path) -> None:
    value = {"b": 1.5, "a": [1, None, True], "name": "\u00e9"}
    write_json(tmp_path / "result.json", value)
    text = (tmp_path / "result.json").read_text("utf-8")
    assert text == json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    assert text.index('"b"') < text.index('"a"')
    assert read_json(tmp_path / "result.json") == value


@pytest.mark.parametrize(
    ("value", "error"),
    [({"x": float("nan")}, ValueError), ([float("inf")], ValueError), ({"x": np.float32(1)}, TypeError)],
)
def test_what_json_does_not_have_leaves_the_old_file(tmp_path: Path, value: Any, error: type[Exception]) -> None:
    path = tmp_path / "result.json"
    path.write_text("{}")
    with pytest.raises(error):
        write_json(path, value)
    assert path.read_text() == "{}"
    assert names_in(tmp_path) == ["result.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"loss": 1', b"\xff\xfe", b'{"loss": NaN}'])
def test_a_missing_or_malformed_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert str(caught.value).startswith("result.json ")
    assert str(caught.value).endswith(f"Received: {path}")


def test_a_file_or_a_folder_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / "file").write_text(name)
        (tmp_path / "folder" / "within").mkdir(parents=True)
        (tmp_path / "folder" / "within" / name).write_text(name)
        put_in_place(tmp_path / "file", tmp_path / "placed.file")
        put_in_place(tmp_path / "folder", tmp_path / "placed.folder")
        assert (tmp_path / "placed.file").read_text() == name
        assert [path.name for path in (tmp_path / "placed.folder").rglob("*")] == ["within", name]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["placed.file", "placed.folder"]


def test_a_file_system_that_cannot_sync_a_folder_is_no_fault() -> None:
    """Linux's /proc answers EINVAL, as network file systems do."""
    descriptor = os.open("/proc", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync(Path("/proc"))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_is_one(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(code)):
        write_whole(tmp_path / "file", b"new")
    assert names_in(tmp_path) == []


def test_what_a_library_writes_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    (tmp_path / ".model.keras").write_text("of a process that was killed")
    for content in ("old", "new"):
        with written_beside(path) as beside:
            assert not beside.exists()
            assert beside.suffix == ".keras"
            beside.write_text(content)
        assert path.read_text() == content

    def fail_half_way() -> None:
        with written_beside(path) as beside:
            beside.mkdir()
            (beside / "part").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        fail_half_way()
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["model.keras"]
