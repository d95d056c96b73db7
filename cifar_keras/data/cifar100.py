"""CIFAR-100, as TFDS prepares it from the official archive."""

import hashlib
import shutil

from cifar_keras.config import RunConfig
from cifar_keras.data.pictures.dataset import load_pictures
from cifar_keras.data.pictures.tfds_set import list_tfds
from cifar_keras.data.types import PublishedDataset
from cifar_keras.errors import UserError, unwritable
from cifar_keras.files import paths, writing

ARCHIVE = "cifar-100-binary.tar.gz"
# TFDS publishes this digest with its builder.
ARCHIVE_SHA256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"


def load(config: RunConfig) -> PublishedDataset:
    """Return CIFAR-100 with its 100 classes, from the folder where TFDS prepared it. If it is missing, TFDS prepares it.

    TFDS takes the official archive that `--archive` names, or that lies in DATA_DIR/downloads/manual, and downloads it otherwise.

    Raises:
        UserError: the archive is not the official one, or nobody has the data set.
    """
    data = config.data
    if data.archive:
        _offer_archive(data.archive, data.data_dir)
    return load_pictures(list_tfds("cifar100", data), config, is_published=True)


def _offer_archive(archive: str, data_dir: str) -> None:
    """Put an official archive where TFDS looks before it downloads.

    Raises:
        UserError: the file cannot be read or is another one, or the folder cannot be written.
    """
    file, place = (
        paths.expand("archive", archive),
        paths.expand("data_dir", data_dir) / "downloads" / "manual" / ARCHIVE,
    )
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"--archive cannot be read: {error.strerror}. Received: {archive}") from error
    if digest != ARCHIVE_SHA256:
        raise UserError(
            f"--archive has to name the official {ARCHIVE}; the file has the SHA-256 digest {digest}. Received: {archive}"
        )
    if place.exists():
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with writing.written_beside(place) as beside:
            shutil.copyfile(file, beside)
    except OSError as error:
        raise UserError(f"--data_dir cannot be written: {unwritable(error) or error}. Received: {data_dir}") from error
