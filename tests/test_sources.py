"""What `load_published` and `prepare_dataset` do with each source, and with what is broken."""

import functools
import hashlib
import io
import json
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from cifar_keras.config import DataConfig, DatasetKind, DataSource, RunConfig
from cifar_keras.data import datasets, synthetic
from cifar_keras.data.cifar10 import archives, sources
from cifar_keras.data.cifar10.layout import Contents, folder_of
from cifar_keras.data.datasets import load_published
from cifar_keras.data.types import PublishedDataset
from cifar_keras.errors import UserError
from cifar_keras.files import fetching

SECONDS = 60.0
FROM_ELSEWHERE = [DataSource.AUTO, DataSource.PREPARED, DataSource.ARCHIVE, DataSource.NPM, DataSource.TFDS]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No npm on PATH, and a proxy to which nobody listens."""
    monkeypatch.setenv("PATH", "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)


def pack(path: Path, files: dict[str, bytes], compresslevel: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=compresslevel) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pack_binary(path: Path, batches: dict[str, bytes], compresslevel: int = 9) -> Path:
    files = {f"cifar-10-batches-bin/{name}.bin": records for name, records in batches.items()}
    return pack(path, files, compresslevel)


def digests_below(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same(read: PublishedDataset, expected: PublishedDataset) -> None:
    for ours, theirs in ((read.train, expected.train), (read.test, expected.test)):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_synthetic_touches_no_disk(tmp_path: Path) -> None:
    data = DataConfig(data_source=DataSource.SYNTHETIC, data_dir=str(tmp_path / "never-made"))
    dataset = load_published(RunConfig(data=data, seed=5))
    assert_same(dataset, synthetic.make_dataset(5))
    assert list(tmp_path.iterdir()) == []


def test_classes_of_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_config: RunConfig) -> PublishedDataset:
        return synthetic.make_dataset(0, 4)._replace(class_names=("cat", "dog", "cat", "bird"))

    row = datasets.DATASETS[DatasetKind.SYNTHETIC]
    monkeypatch.setitem(datasets.DATASETS, DatasetKind.SYNTHETIC, row._replace(load=load))
    config = RunConfig(data=DataConfig(dataset=DatasetKind.SYNTHETIC))
    with pytest.raises(UserError, match=r"^--dataset=synthetic has classes of the same name\. Received: cat$"):
        datasets.load_dataset(config)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", FROM_ELSEWHERE)
def test_prepared_folder_is_used_whatever_the_source(
    source: DataSource, small_data_dir: Path, small_contents: Contents, small_dataset: PublishedDataset
) -> None:
    before = digests_below(small_data_dir)
    dataset = sources.prepare_dataset(source, str(small_data_dir), "", SECONDS, small_contents)
    assert_same(dataset, small_dataset)
    assert digests_below(small_data_dir) == before


@pytest.mark.parametrize("source", FROM_ELSEWHERE)
@pytest.mark.parametrize("half_written", [False, True])
def test_broken_folder_stops_and_stays(
    source: DataSource, half_written: bool, small_data_dir: Path, small_contents: Contents, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path)
    shutil.copytree(folder_of(small_data_dir), folder)
    if half_written:
        (folder / "dataset_info.json").unlink()
    else:
        shard = folder / "cifar10-train.tfrecord-00000-of-00001"
        shard.write_bytes(shard.read_bytes()[:2000])
    before = digests_below(tmp_path)
    with pytest.raises(
        UserError, match=rf"cifar10/3\.0\.2 is not a whole .* remove it .*Received: --data_source={source}"
    ):
        sources.prepare_dataset(source, str(tmp_path), "", SECONDS, small_contents)
    assert digests_below(tmp_path) == before


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("place", ["cifar-10-binary.tar.gz", "downloads/manual/cifar-10-python.tar.gz"])
def test_archive_that_lies_there_is_found(
    place: str,
    small_batches: dict[str, bytes],
    small_contents: Contents,
    small_dataset: PublishedDataset,
    tmp_path: Path,
) -> None:
    archive = pack_binary(tmp_path / place, small_batches)
    for source in (DataSource.AUTO, DataSource.PREPARED):  # the second finds what the first has prepared
        dataset = sources.prepare_dataset(source, str(tmp_path), "", SECONDS, small_contents)
        assert_same(dataset, small_dataset)
    assert len(tfds.load("cifar10", data_dir=tmp_path, download=False, split="train")) == 20
    assert archive.exists()


@pytest.mark.usefixtures("offline")
def test_broken_archive_that_lies_there_is_told_and_passed_over(
    small_batches: dict[str, bytes],
    small_contents: Contents,
    small_dataset: PublishedDataset,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = pack_binary(tmp_path / "cifar-10-binary.tar.gz", small_batches)
    broken.write_bytes(broken.read_bytes()[:-50])
    before = digests_below(tmp_path)
    with pytest.raises(UserError) as caught:
        sources.prepare_dataset(DataSource.AUTO, str(tmp_path), "", SECONDS, small_contents)
    message = str(caught.value)
    assert f"archive: {broken} is truncated" in message
    assert "npm: npm is not installed" in message
    assert "cannot be reached" in message
    assert message.endswith(f"Received: --data_source=auto --data_dir={tmp_path}")
    assert f"CIFAR-10 from archive: {broken} is truncated" in capfd.readouterr().err
    assert digests_below(tmp_path) == before

    pack_binary(tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz", small_batches)
    dataset = sources.prepare_dataset(DataSource.AUTO, str(tmp_path), "", SECONDS, small_contents)
    assert_same(dataset, small_dataset)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", [DataSource.AUTO, DataSource.ARCHIVE])
def test_named_archive_is_used(
    source: DataSource,
    small_batches: dict[str, bytes],
    small_contents: Contents,
    small_dataset: PublishedDataset,
    tmp_path: Path,
) -> None:
    archive = pack_binary(tmp_path / "elsewhere" / "mine.tgz", small_batches)
    data_dir = tmp_path / "new" / "data"
    dataset = sources.prepare_dataset(source, str(data_dir), str(archive), SECONDS, small_contents)
    assert_same(dataset, small_dataset)
    assert [entry.name for entry in data_dir.iterdir()] == ["cifar10"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "other pixel", "folder"])
def test_named_archive_that_is_broken_stops_even_with_a_prepared_folder(
    damage: str,
    small_batches: dict[str, bytes],
    small_contents: Contents,
    small_data_dir: Path,
    tmp_path: Path,
) -> None:
    archive = tmp_path / "mine.tar.gz"
    if damage == "truncated":
        pack_binary(archive, small_batches)
        archive.write_bytes(archive.read_bytes()[:5000])
    elif damage == "other pixel":
        changed = small_batches["test_batch"][:-1] + bytes([small_batches["test_batch"][-1] ^ 1])
        pack_binary(archive, {**small_batches, "test_batch": changed})
    elif damage == "folder":
        archive.mkdir()
    for source in (DataSource.AUTO, DataSource.ARCHIVE):
        with pytest.raises(UserError, match=r"^--archive has .*mine\.tar\.gz .*Received: .*/mine\.tar\.gz$"):
            sources.prepare_dataset(source, str(small_data_dir), str(archive), SECONDS, small_contents)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (DataSource.PREPARED, "prepared: there is no folder .*3.0.2"),
        (DataSource.ARCHIVE, "archive: there is no cifar-10-binary.tar.gz or cifar-10-python.tar.gz in"),
        (DataSource.NPM, "npm: npm is not installed"),
        (DataSource.TFDS, "tfds: .*cifar-10-binary.tar.gz cannot be reached"),
    ],
)
def test_one_source_by_name_is_the_only_one_tried(source: DataSource, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"any source. {reason}[^;]*Received: --data_source={source} --data_dir="):
        sources.prepare_dataset(source, str(tmp_path), "", SECONDS)
    assert not (tmp_path / "cifar10").exists()


def test_data_dir_that_cannot_be_written_is_named_before_anything_is_fetched(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=rf"^--data_dir has to be a folder .*Received: {data_dir}$"):
            sources.prepare_dataset(DataSource.AUTO, str(data_dir), "", SECONDS)
    assert "CIFAR-10 from" not in capfd.readouterr().err  # which is how a source that was tried would show


def test_prepared_only_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        sources.prepare_dataset(DataSource.PREPARED, str(tmp_path / "data"), "", SECONDS)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_npm_tarball(
    small_dataset: PublishedDataset, small_batches: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A package of the 24 images, pinned instead of the real one, that has already been fetched into `tmp_path`."""
    images = np.concatenate([small_dataset.train.images, small_dataset.test.images]).reshape(6, 4, 1024, 3)
    files = {
        f"package/{name}.png": tf.io.encode_png(picture).numpy()
        for name, picture in zip(small_batches, images, strict=True)
    }
    files["package/train_lables.json"] = json.dumps(small_dataset.train.labels.tolist()).encode()
    files["package/test_lables.json"] = json.dumps(small_dataset.test.labels.tolist()).encode()
    tarball = pack(tmp_path / "downloads" / "small-1.0.0.tgz", files)
    digest = hashlib.sha512(tarball.read_bytes()).hexdigest()
    package = fetching.NpmPackage("small", "1.0.0", tarball.stat().st_size, digest)
    monkeypatch.setattr(sources, "NPM_PACKAGE", package)
    return tarball


@pytest.mark.usefixtures("offline")
def test_npm_tarball_goes_once_the_folder_is_written(
    small_npm_tarball: Path, small_contents: Contents, small_dataset: PublishedDataset, tmp_path: Path
) -> None:
    dataset = sources.prepare_dataset(DataSource.AUTO, str(tmp_path), "", SECONDS, small_contents)
    assert_same(dataset, small_dataset)
    assert not small_npm_tarball.exists()
    assert len(tfds.load("cifar10", data_dir=tmp_path, download=False, split="test")) == 4


@pytest.mark.usefixtures("offline")
def test_npm_tarball_stays_when_writing_fails(
    small_npm_tarball: Path, small_contents: Contents, tmp_path: Path
) -> None:
    (tmp_path / "cifar10").touch()  # where a folder has to be
    with pytest.raises(UserError, match=r"^--data_dir has to be a folder that can be written"):
        sources.prepare_dataset(DataSource.NPM, str(tmp_path), "", SECONDS, small_contents)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cifar10", "downloads"]
    assert small_npm_tarball.exists()


@pytest.fixture
def archive_server(small_batches: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server in place of CIFAR-10's home, and the archive that it serves."""
    archive = pack_binary(tmp_path / "served" / "cifar-10-binary.tar.gz", small_batches)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=archive.parent)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(sources, "OFFICIAL_URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        yield archive
        server.shutdown()
        thread.join()


def test_tfds_downloads_the_archive(
    archive_server: Path, small_contents: Contents, small_dataset: PublishedDataset, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    dataset = sources.prepare_dataset(DataSource.TFDS, str(data_dir), "", SECONDS, small_contents)
    assert_same(dataset, small_dataset)
    assert [entry.name for entry in data_dir.iterdir()] == ["cifar10"]
    assert len(tfds.load("cifar10", data_dir=data_dir, download=False, split="train")) == 20

    archive_server.write_bytes(archive_server.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"tfds: .*cifar-10-binary\.tar\.gz is truncated"):
        sources.prepare_dataset(DataSource.TFDS, str(tmp_path / "other"), "", SECONDS, small_contents)
    assert not (tmp_path / "other").exists()


def test_download_that_hangs_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts connections and never answers
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(UserError, match=r"tfds: it stood still for 1 s \(--source_timeout_seconds\)"):
            sources.prepare_dataset(DataSource.TFDS, str(tmp_path / "data"), "", 1.0)
    assert list(tmp_path.iterdir()) == []


REAL_DATA_DIR = "~/tensorflow_datasets"
PLAIN_DATA_DIR = Path(REAL_DATA_DIR).expanduser()  # TFDS itself would look for a folder named ~
NPM_SECONDS = 600.0
OFFICIAL_MD5 = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


@pytest.fixture(scope="module")
def cifar10() -> PublishedDataset:
    return sources.prepare_dataset(DataSource.AUTO, REAL_DATA_DIR, "", NPM_SECONDS)


@pytest.mark.real_data
def test_real_images_have_the_known_statistics(cifar10: PublishedDataset) -> None:
    assert (cifar10.train.images.shape, cifar10.test.images.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert np.bincount(cifar10.train.labels).tolist() == [5000] * 10
    assert np.bincount(cifar10.test.labels).tolist() == [1000] * 10
    assert cifar10.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert cifar10.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    counts = np.stack(
        [np.bincount(cifar10.train.images[:][..., channel].ravel(), minlength=256) for channel in range(3)]
    )
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    deviation = np.sqrt(counts @ levels**2 / counts.sum(axis=1) - mean**2)
    np.testing.assert_allclose(mean, [0.49140, 0.48216, 0.44653], atol=1e-5)
    np.testing.assert_allclose(deviation, [0.24703, 0.24349, 0.26159], atol=1e-5)


@pytest.mark.real_data
def test_real_batches_have_the_known_digests(cifar10: PublishedDataset) -> None:
    images = np.concatenate([cifar10.train.images, cifar10.test.images])
    labels = np.concatenate([cifar10.train.labels, cifar10.test.labels])
    for index, (name, expected) in enumerate(OFFICIAL_MD5.items()):
        digest = hashlib.md5()
        for row in range(index * 10_000, (index + 1) * 10_000):
            digest.update(bytes([labels[row]]))
            for channel in range(3):
                digest.update(images[row, :, :, channel].tobytes())
        assert digest.hexdigest() == expected, name


@pytest.mark.real_data
def test_plain_tfds_reads_the_same_60000_images(cifar10: PublishedDataset) -> None:
    for split, expected in (("train", cifar10.train), ("test", cifar10.test)):
        batches = tfds.load("cifar10", data_dir=PLAIN_DATA_DIR, download=False, split=split, batch_size=1000)
        seen = np.zeros(len(expected.labels), np.int64)
        for batch in tfds.as_numpy(batches):
            rows = np.array([int(name.decode().removeprefix(f"{split}_")) for name in batch["id"]])
            np.testing.assert_array_equal(batch["image"], expected.images[rows])
            np.testing.assert_array_equal(batch["label"], expected.labels[rows])
            seen[rows] += 1
        assert (seen == 1).all()


@pytest.mark.real_data
def test_plain_tfds_slices_the_real_folder_and_knows_its_size(cifar10: PublishedDataset) -> None:
    parts = ["train[:90%]", "train[90%:]"]
    loaded = [tfds.load("cifar10", data_dir=PLAIN_DATA_DIR, download=False, split=part) for part in parts]
    assert [len(part) for part in loaded] == [45_000, 5_000]
    info = tfds.builder("cifar10", data_dir=PLAIN_DATA_DIR).info
    assert str(info.dataset_size) == "132.40 MiB"  # as the TFDS catalog has it
    assert str(info.download_size) == "162.17 MiB"
    assert info.features["label"].names == list(cifar10.class_names)


@pytest.mark.real_data
def test_real_images_make_an_official_archive_that_is_accepted(cifar10: PublishedDataset, tmp_path: Path) -> None:
    """Both ways through the layout of the binary version, at full size."""
    images = np.concatenate([cifar10.train.images, cifar10.test.images])
    labels = np.concatenate([cifar10.train.labels, cifar10.test.labels]).astype(np.uint8)
    records = np.concatenate([labels[:, np.newaxis], images.transpose(0, 3, 1, 2).reshape(60_000, 3072)], axis=1)
    batches = {name: part.tobytes() for name, part in zip(OFFICIAL_MD5, np.split(records, 6), strict=True)}
    archive = pack_binary(tmp_path / "cifar-10-binary.tar.gz", batches, compresslevel=1)
    assert_same(archives.read_official_archive(archive), cifar10)
