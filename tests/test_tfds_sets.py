"""Sets of TFDS as data sets of a run: 100 classes that a builder of the test prepares, and sets that are refused."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from picture_files import noise, picture_config

from cifar_keras import evaluate
from cifar_keras.config import DataSource, RunConfig
from cifar_keras.data.datasets import load_dataset
from cifar_keras.data.types import Dataset
from cifar_keras.errors import UserError

CLASSES = [f"number {number}" for number in range(100)]
COUNTS = {"train": 6, "validation": 1, "test": 2}  # images of each class


class _Builder(tfds.core.GeneratorBasedBuilder):
    """A builder that needs no download and no registration."""

    VERSION = tfds.core.Version("1.0.0")
    # Of its examples, by the names of the features.
    features: ClassVar[dict[str, Any]]
    splits: ClassVar = COUNTS

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features))

    def _split_generators(self, _manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {name: self._examples(name, count) for name, count in self.splits.items()}

    def _generate_examples(self) -> None:
        """Not used: each split has its examples already."""

    def _examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        start = 1000 * list(self.splits).index(split)
        for number in range(100 * count):
            yield number, {"image": noise(start + number, 12, 10), **self.others(number)}

    def others(self, number: int) -> dict[str, Any]:
        return {"label": number % 100}


with tfds.core.registered.skip_registration():

    class Numbers(_Builder):
        features: ClassVar = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }

    class OtherSplits(Numbers):
        splits: ClassVar = {"one": 1, "two": 1}

    class Boxes(_Builder):
        """For detection."""

        features: ClassVar = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "objects": tfds.features.Sequence(
                {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=2)}
            ),
        }
        splits: ClassVar = {"train": 1}

        def others(self, number: int) -> dict[str, Any]:
            return {"objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0), "label": number % 2}]}

    class Ages(_Builder):
        """Whose labels are no classes."""

        features: ClassVar = {"image": tfds.features.Image(shape=(None, None, 3)), "label": np.int64}
        splits: ClassVar = {"train": 1}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    for builder in (Numbers, OtherSplits, Boxes, Ages):
        builder(data_dir=folder).download_and_prepare()
    return folder


def config_of(name: str, data_dir: Path, **flags: object) -> RunConfig:
    return picture_config(f"tfds:{name}", data_dir / "cache", data_dir=str(data_dir), **flags)


@pytest.fixture(scope="module")
def numbers(data_dir: Path) -> Dataset:
    return load_dataset(config_of("numbers", data_dir))


def test_a_set_keeps_its_splits_its_pixels_and_its_classes_sorted(numbers: Dataset) -> None:
    assert numbers.class_names == tuple(sorted(CLASSES))
    assert dict(numbers.contents.images) == {name: 100 * count for name, count in COUNTS.items()}
    for place, (name, count) in enumerate(COUNTS.items()):
        images, labels = getattr(numbers, name)
        found = {image.tobytes(): numbers.class_names[label] for image, label in zip(images[:], labels, strict=True)}
        wanted = {
            noise(1000 * place + number, 12, 10).tobytes(): CLASSES[number % 100] for number in range(100 * count)
        }
        assert found == wanted


def test_the_second_time_nothing_is_decoded(data_dir: Path, numbers: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_dataset", None)
    assert load_dataset(config_of("numbers:1.0.0", data_dir)).contents.digest == numbers.contents.digest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("boxes", "has to name a set with an image and a class label; its features are image, objects"),
        ("ages", "has to name a set with an image and a class label; its features are image, label"),
        ("other_splits", "has to name a set with a train split; its splits are one, two"),
        ("no_such_set", "cannot be read: .*no_such_set.* TFDS lists its sets on "),
        ("numbers:9.9.9", "cannot be read: "),
        ("numbers/small", "cannot be read: "),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_in_one_line(name: str, message: str, data_dir: Path) -> None:
    with pytest.raises(UserError, match=rf"^--dataset.*{message}.* Received: --dataset=tfds:{name}$") as caught:
        load_dataset(config_of(name, data_dir, data_source=DataSource.PREPARED))
    assert len(str(caught.value).splitlines()) == 1


def test_a_set_that_is_not_prepared_is_not_downloaded_for_a_finished_run(data_dir: Path) -> None:
    with pytest.raises(UserError, match=rf"^--dataset cannot be read: it is not prepared in {data_dir}\. "):
        load_dataset(config_of("mnist", data_dir, data_source=DataSource.PREPARED))
    assert not (data_dir / "mnist").exists()


def test_a_damaged_file_of_a_set_is_named(tmp_path: Path) -> None:
    Numbers(data_dir=tmp_path).download_and_prepare()
    (record,) = (tmp_path / "numbers" / "1.0.0").glob("*-train.tfrecord-*")
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    with pytest.raises(UserError, match=rf"^--dataset cannot be read: .*corrupted record.* Received: {tmp_path}"):
        load_dataset(config_of("numbers", tmp_path))
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.slow
def test_a_run_on_a_hundred_classes(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From TFDS to a report, and measured again."""
    importlib.import_module("cifar_keras.train").main(
        [
            *("train", "--dataset=tfds:numbers", f"--data_dir={data_dir}", f"--cache_dir={data_dir / 'cache'}"),
            *(f"--workdir={tmp_path / 'run'}", "--backbone=resnet20", "--weights=none", "--image_size=32"),
            *("--head_epochs=0", "--finetune_epochs=1", "--kernel_gradient=convolution", "--compute_dtype=float32"),
        ]
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["test"]["per_class"]) == 100
    assert (result["test"]["n"], result["validation"]["n"]) == (200, 100)
    assert "numbers" in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    evaluate.main(["evaluate", f"--model={tmp_path / 'run'}"])
    assert "the metrics agree with" in capsys.readouterr().out
