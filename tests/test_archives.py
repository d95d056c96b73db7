"""Archives are made here with tarfile and by hand, and read by `archives`."""

import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from conftest import BATCHES
from hypothesis import given
from hypothesis import strategies as st

from cifar_keras.data.cifar10 import archives
from cifar_keras.data.cifar10.layout import Contents
from cifar_keras.data.types import PublishedDataset
from cifar_keras.errors import SourceError
from cifar_keras.files import tarballs

BINARY = "cifar-10-batches-bin"
PYTHON = "cifar-10-batches-py"


def pack(path: Path, files: dict[str, bytes], others: tuple[tarfile.TarInfo, ...] = (), **options: int) -> Path:
    with tarfile.open(path, "w:gz", **options) as tar:  # type: ignore[call-overload]
        for other in others:
            tar.addfile(other)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def binary_files(batches: dict[str, bytes], folder: str = BINARY) -> dict[str, bytes]:
    return {f"{folder}/{name}.bin": records for name, records in batches.items()}


def python_2_pickle(records: bytes) -> bytes:
    """Write a batch opcode by opcode as Python 2 and its NumPy did (protocol 2, byte strings)."""
    rows = np.frombuffer(records, np.uint8).reshape(-1, 3073)

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    planes = rows[:, 1:].tobytes()
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    )
    state = number(1) + number(len(rows)) + number(3072) + b"\x86" + dtype + b"\x89"
    array += b"(" + state + b"T" + struct.pack("<i", len(planes)) + planes + b"tb"
    labels = b"](" + b"".join(number(int(label)) for label in rows[:, 0]) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + labels + b"u."


def assert_same(read: PublishedDataset, expected: PublishedDataset) -> None:
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(read, split).images, getattr(expected, split).images)
        np.testing.assert_array_equal(getattr(read, split).labels, getattr(expected, split).labels)
        assert getattr(read, split).images.dtype == np.uint8
        assert getattr(read, split).labels.dtype == np.int64
    assert read.class_names == expected.class_names


@hypothesis.settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5))
def test_any_images_come_the_same_from_every_kind_of_archive(seed: int, count: int) -> None:
    records = np.random.default_rng(seed).integers(0, 256, (6, count, 3073), np.uint8)
    records[..., 0] %= 10
    batches = {name: part.tobytes() for name, part in zip(BATCHES, records, strict=True)}
    contents = Contents(count, {name: hashlib.md5(part).hexdigest() for name, part in batches.items()})
    with tempfile.TemporaryDirectory() as folder:
        pickles = {f"{PYTHON}/{name}": python_2_pickle(part) for name, part in batches.items()}
        binary, python, npm = (Path(folder, name) for name in ("binary.tar.gz", "python.tar.gz", "npm.tgz"))
        first = archives.read_official_archive(pack(binary, binary_files(batches)), contents)
        assert_same(archives.read_official_archive(pack(python, pickles), contents), first)
        assert_same(archives.read_npm_tarball(pack(npm, npm_files(first)), contents), first)
    planes = first.train.images[:].transpose(0, 3, 1, 2).reshape(5, count, 3072)
    np.testing.assert_array_equal(planes, records[:5, :, 1:])
    np.testing.assert_array_equal(first.train.labels.reshape(5, count), records[:5, :, 0])


@pytest.mark.parametrize("folder", [BINARY, f"./{BINARY}"])
def test_binary_archive_gives_the_images(
    folder: str,
    tmp_path: Path,
    small_batches: dict[str, bytes],
    small_contents: Contents,
    small_dataset: PublishedDataset,
) -> None:
    path = pack(tmp_path / "a.tar.gz", binary_files(small_batches, folder), compresslevel=1)
    assert_same(archives.read_official_archive(path, small_contents), small_dataset)


def test_hand_written_pickle_is_what_numpy_reads(small_batches: dict[str, bytes]) -> None:
    records = small_batches["data_batch_1"]
    batch = pickle.loads(python_2_pickle(records), encoding="bytes")
    rows = np.frombuffer(records, np.uint8).reshape(-1, 3073)
    np.testing.assert_array_equal(batch[b"data"], rows[:, 1:])
    assert batch[b"labels"] == rows[:, 0].tolist()


def test_python_archive_gives_the_images(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents, small_dataset: PublishedDataset
) -> None:
    files = {f"{PYTHON}/{name}": python_2_pickle(records) for name, records in small_batches.items()}
    path = pack(tmp_path / "a.tar.gz", files)
    assert_same(archives.read_official_archive(path, small_contents), small_dataset)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_pickle_that_runs_a_command_is_refused(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    proof = tmp_path / "it-ran"
    attack = pickle.dumps({"data": Touch(proof)}, protocol=2)
    files = {f"{PYTHON}/{name}": attack for name in small_batches}
    path = pack(tmp_path / "a.tar.gz", files)
    with pytest.raises(SourceError, match=r"a\.tar\.gz cannot be used: its pickle asks for .*system"):
        archives.read_official_archive(path, small_contents)
    assert not proof.exists()
    pickle.loads(attack)
    assert proof.exists()  # so the attack was a real one


@pytest.mark.parametrize(
    "content",
    [pickle.dumps([], 2), pickle.dumps({b"data": 1}, 2), pickle.dumps({}, 2), b"", b"\x80\x02}(U", b"no pickle"],
)
def test_pickle_of_something_else_is_refused(
    content: bytes, tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    path = pack(tmp_path / "a.tar.gz", {f"{PYTHON}/{name}": content for name in small_batches})
    with pytest.raises(SourceError, match=r"a\.tar\.gz"):
        archives.read_official_archive(path, small_contents)


def test_pickle_that_asks_for_a_table_of_gigabytes_is_refused(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    """Ten bytes that take 32 GiB in Python's own unpickler; the fuzz test found them."""
    content = b"\x80\x02}r\xff\xff\xff\x7f."
    path = pack(tmp_path / "a.tar.gz", {f"{PYTHON}/{name}": content for name in small_batches})
    with pytest.raises(SourceError, match=r"a\.tar\.gz cannot be used: its pickle gives the number 2,147,483,647"):
        archives.read_official_archive(path, small_contents)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_truncated_archive_is_named(
    fraction: float, tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    path = pack(tmp_path / "a.tar.gz", binary_files(small_batches))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(SourceError, match=r"a\.tar\.gz"):
        archives.read_official_archive(path, small_contents)


def test_any_flipped_bit_of_an_archive_is_noticed_or_harmless(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents, small_dataset: PublishedDataset
) -> None:
    path = pack(tmp_path / "a.tar.gz", binary_files(small_batches))
    whole = path.read_bytes()
    refused = 0
    for position in np.random.default_rng(0).integers(0, len(whole), 100):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(broken)
        try:
            assert_same(archives.read_official_archive(path, small_contents), small_dataset)
        except SourceError:
            refused += 1
    assert refused >= 90  # a few bits of the gzip header mean nothing


@pytest.mark.parametrize("offset", [0, 3073 * 2 + 100])
def test_changed_label_or_pixel_is_noticed(
    offset: int, tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    changed = bytearray(small_batches["data_batch_3"])
    changed[offset] ^= 1
    path = pack(tmp_path / "a.tar.gz", binary_files({**small_batches, "data_batch_3": bytes(changed)}))
    with pytest.raises(SourceError, match=r"a\.tar\.gz cannot be used: data_batch_3 is not the official one"):
        archives.read_official_archive(path, small_contents)


def test_batch_with_too_few_images_is_noticed(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    path = pack(tmp_path / "a.tar.gz", binary_files({**small_batches, "test_batch": b""}))
    with pytest.raises(SourceError, match="20 train and 0 test images instead of 20 and 4"):
        archives.read_official_archive(path, small_contents)


def link_to(target: str, kind: bytes) -> tarfile.TarInfo:
    link = tarfile.TarInfo(f"{BINARY}/test_batch.bin")
    link.type, link.linkname = kind, target
    return link


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_link_or_device_in_place_of_a_batch_is_refused(
    kind: bytes, tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    elsewhere = tmp_path / "test_batch.bin"
    elsewhere.write_bytes(small_batches["test_batch"])
    files = binary_files(small_batches)
    del files[f"{BINARY}/test_batch.bin"]
    path = pack(tmp_path / "a.tar.gz", files, (link_to(str(elsewhere), kind),))
    with pytest.raises(SourceError, match=r"it has no file cifar-10-batches-bin/test_batch\.bin"):
        archives.read_official_archive(path, small_contents)


def test_sparse_member_that_claims_a_terabyte_is_refused(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    files = binary_files(small_batches)
    del files[f"{BINARY}/test_batch.bin"]
    sparse = tarfile.TarInfo(f"{BINARY}/test_batch.bin")
    sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**12)}
    path = pack(tmp_path / "a.tar.gz", files, (sparse,))
    with pytest.raises(SourceError, match=r"it has no file cifar-10-batches-bin/test_batch\.bin"):
        archives.read_official_archive(path, small_contents)


def test_members_that_lead_out_of_the_archive_write_nothing(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents, small_dataset: PublishedDataset
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    outside = {"../escaped": b"x", str(tmp_path / "absolute"): b"x"}
    path = pack(inside / "a.tar.gz", {**outside, **binary_files(small_batches)})
    assert_same(archives.read_official_archive(path, small_contents), small_dataset)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["a.tar.gz", "inside"]


def test_batch_that_comes_twice_is_refused(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents
) -> None:
    twice = {f"./{BINARY}/test_batch.bin": b"x", **binary_files(small_batches)}
    with pytest.raises(SourceError, match="twice"):
        archives.read_official_archive(pack(tmp_path / "a.tar.gz", twice), small_contents)


def test_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, small_batches: dict[str, bytes], small_contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarballs, "UNPACKED_BYTES_LIMIT", 2**20)
    path = pack(tmp_path / "a.tar.gz", {"zeros": bytes(2**20), **binary_files(small_batches)})
    with pytest.raises(SourceError, match="unpacks to more than 1048576 bytes"):
        archives.read_official_archive(path, small_contents)


@pytest.mark.parametrize("content", [None, b"no archive at all", b"\x1f\x8b"])
def test_file_that_is_no_archive_or_not_there_is_named(
    content: bytes | None, tmp_path: Path, small_contents: Contents
) -> None:
    path = tmp_path / "a.tar.gz"
    if content is not None:
        path.write_bytes(content)
    for read in (archives.read_official_archive, archives.read_npm_tarball):
        with pytest.raises(SourceError, match=r"a\.tar\.gz"):
            read(path, small_contents)


def npm_files(dataset: PublishedDataset) -> dict[str, bytes]:
    rows = np.concatenate([dataset.train.images, dataset.test.images]).reshape(6, -1, 1024, 3)
    names = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]
    files = {
        f"package/{name}.png": tf.io.encode_png(picture).numpy() for name, picture in zip(names, rows, strict=True)
    }
    files["package/train_lables.json"] = json.dumps(dataset.train.labels.tolist()).encode()
    files["package/test_lables.json"] = json.dumps(dataset.test.labels.tolist()).encode()
    return files


def test_npm_tarball_gives_the_images(
    tmp_path: Path, small_contents: Contents, small_dataset: PublishedDataset
) -> None:
    path = pack(tmp_path / "a.tgz", npm_files(small_dataset))
    assert_same(archives.read_npm_tarball(path, small_contents), small_dataset)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data_batch_2.png", b"no picture"),
        ("data_batch_2.png", tf.io.encode_png(np.zeros((4, 1024, 3), np.uint8)).numpy()),
        ("train_lables.json", b"[1, 2"),
        ("train_lables.json", b'{"a": 1}'),
        ("test_lables.json", b"[1, 2, 3, 400]"),
    ],
)
def test_npm_tarball_with_other_content_is_named(
    name: str, content: bytes, tmp_path: Path, small_contents: Contents, small_dataset: PublishedDataset
) -> None:
    path = pack(tmp_path / "a.tgz", {**npm_files(small_dataset), f"package/{name}": content})
    with pytest.raises(SourceError, match=r"a\.tgz cannot be used"):
        archives.read_npm_tarball(path, small_contents)
