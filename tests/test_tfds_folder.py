"""The folder is written by `tfds_folder` and looked at with plain TFDS, and the other way round."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cifar_keras.data.cifar10 import tfds_folder
from cifar_keras.data.cifar10.layout import CLASS_NAMES, Contents, folder_of
from cifar_keras.data.types import PublishedDataset
from cifar_keras.errors import SourceError


def digests_below(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_plain_tfds_reads_the_same_images_under_the_original_ids(
    small_data_dir: Path, small_dataset: PublishedDataset
) -> None:
    for split in ("train", "test"):
        expected = getattr(small_dataset, split)
        examples = tfds.load("cifar10", data_dir=small_data_dir, download=False, split=split)
        seen = {}
        for example in tfds.as_numpy(examples):
            name, index = example["id"].decode().split("_")
            assert (name, len(index)) == (split, 5)
            np.testing.assert_array_equal(example["image"], expected.images[int(index)])
            assert example["label"] == expected.labels[int(index)]
            seen[int(index)] = True
        assert sorted(seen) == list(range(len(expected.labels)))


def test_plain_tfds_sees_the_original_dataset_info(small_data_dir: Path, tmp_path: Path) -> None:
    ours = tfds.builder("cifar10", data_dir=small_data_dir)
    original = tfds.image_classification.Cifar10(data_dir=tmp_path)
    assert str(ours.version) == "3.0.2" == str(original.version)
    assert ours.info.full_name == original.info.full_name
    assert ours.info.description == original.info.description
    assert ours.info.citation == original.info.citation
    assert ours.info.module_name == original.info.module_name
    assert ours.info.supervised_keys == original.info.supervised_keys
    assert repr(ours.info.features) == repr(original.info.features)
    assert ours.info.features["label"].names == list(CLASS_NAMES)
    assert {name: split.num_examples for name, split in ours.info.splits.items()} == {"train": 20, "test": 4}
    assert ours.info.download_size == 170_052_171


def test_plain_tfds_can_slice(small_data_dir: Path) -> None:
    parts = [
        tfds.load("cifar10", data_dir=small_data_dir, download=False, split=s) for s in ("train[:90%]", "train[90%:]")
    ]
    assert [len(part) for part in parts] == [18, 2]


def test_writing_does_not_replace_the_registered_builder(small_data_dir: Path) -> None:
    assert folder_of(small_data_dir).is_dir()
    assert tfds.core.registered.imported_builder_cls("cifar10") is tfds.image_classification.Cifar10


def test_reading_gives_the_official_order(
    small_data_dir: Path, small_dataset: PublishedDataset, small_contents: Contents
) -> None:
    read = tfds_folder.read_folder(small_data_dir, small_contents)
    np.testing.assert_array_equal(read.train.images, small_dataset.train.images)
    np.testing.assert_array_equal(read.train.labels, small_dataset.train.labels)
    np.testing.assert_array_equal(read.test.images, small_dataset.test.images)
    np.testing.assert_array_equal(read.test.labels, small_dataset.test.labels)
    assert read.train.images.dtype == np.uint8
    assert read.train.labels.dtype == np.int64
    assert read.class_names == CLASS_NAMES


def test_nothing_but_the_dataset_stays(small_data_dir: Path) -> None:
    assert [entry.name for entry in small_data_dir.iterdir()] == ["cifar10"]
    assert [entry.name for entry in (small_data_dir / "cifar10").iterdir()] == ["3.0.2"]


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _rename_a_class(path: Path) -> None:
    path.write_text(path.read_text().replace("airplane", "aeroplane"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cifar10-train.tfrecord-00000-of-00001", _shorten),
        ("cifar10-test.tfrecord-00000-of-00001", _flip_a_bit),
        ("cifar10-test.tfrecord-00000-of-00001", Path.unlink),
        ("dataset_info.json", _shorten),
        ("dataset_info.json", Path.unlink),
        ("features.json", _shorten),
        ("label.labels.txt", _rename_a_class),
    ],
)
def test_damaged_folder_is_named(
    name: str, damage: Callable[[Path], None], small_data_dir: Path, small_contents: Contents, tmp_path: Path
) -> None:
    data_dir = tmp_path / "copy"
    shutil.copytree(small_data_dir, data_dir)
    damage(folder_of(data_dir) / name)
    with pytest.raises(SourceError, match=r"copy/cifar10/3\.0\.2 is not a whole CIFAR-10"):
        tfds_folder.read_folder(data_dir, small_contents)


def test_folder_with_other_images_is_named(small_data_dir: Path, small_contents: Contents) -> None:
    other = Contents(small_contents.images_per_batch, {**small_contents.md5, "data_batch_4": "0" * 32})
    with pytest.raises(SourceError, match=r"cifar10/3\.0\.2 is not a whole CIFAR-10: data_batch_4 is not the official"):
        tfds_folder.read_folder(small_data_dir, other)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no folder .*/cifar10/3\.0\.2"):
        tfds_folder.read_folder(tmp_path)


def test_what_does_not_verify_is_not_put_in_place(
    small_dataset: PublishedDataset, small_contents: Contents, tmp_path: Path
) -> None:
    other = Contents(small_contents.images_per_batch, {**small_contents.md5, "test_batch": "0" * 32})
    with pytest.raises(SourceError, match="test_batch"):
        tfds_folder.write_folder(small_dataset, tmp_path, other)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_faster_process_stays(
    small_data_dir: Path, small_dataset: PublishedDataset, small_contents: Contents, tmp_path: Path
) -> None:
    data_dir = tmp_path / "copy"
    shutil.copytree(small_data_dir, data_dir)
    mark = folder_of(data_dir) / "mark-of-the-other"
    mark.touch()
    read = tfds_folder.write_folder(small_dataset, data_dir, small_contents)
    np.testing.assert_array_equal(read.train.images, small_dataset.train.images)
    assert mark.exists()
    (folder_of(data_dir) / "dataset_info.json").unlink()
    before = digests_below(data_dir)
    with pytest.raises(SourceError, match="is not a whole CIFAR-10"):
        tfds_folder.write_folder(small_dataset, data_dir, small_contents)
    assert digests_below(data_dir) == before


WRITE = """
import sys
from pathlib import Path
import numpy as np
from cifar_keras.data.cifar10 import layout, tfds_folder
from cifar_keras.data.types import LabelledImages, PublishedDataset
split = LabelledImages(np.zeros((5000, 32, 32, 3), np.uint8), np.zeros(5000, np.int64))
tfds_folder.write_folder(PublishedDataset(split, split, layout.CLASS_NAMES), Path(sys.argv[1]))
"""


def test_killed_while_writing_leaves_no_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    while not any(tmp_path.glob(".cifar_keras-*/cifar10/incomplete*")):
        assert writer.poll() is None
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not folder_of(tmp_path).exists()
