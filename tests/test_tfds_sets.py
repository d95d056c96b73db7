"""Data sets of TFDS: builders that are made here and prepared into a folder, where plain TFDS reads them too."""

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from numpy.typing import NDArray
from picture_files import encoded, noise, picture_config
from processes import run

from cifar_keras.data.datasets import load_dataset
from cifar_keras.data.pictures.tfds_set import list_tfds
from cifar_keras.data.types import Dataset, LabelledImages
from cifar_keras.errors import UserError

CLASSES, SIDE = 100, 16
COUNTS = {"train": 800, "validation": 200, "test": 200}
# As text, "thing 10" comes before "thing 2". The set has its own order.
THINGS = tuple(f"thing {index}" for index in range(CLASSES))
PICTURE = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(names=["cat", "dog", "emu"]),
}
Examples = Mapping[str, list[dict[str, Any]]]


def prepare(folder: Path, name: str, features: dict[str, Any], examples: Examples, shards: int = 1) -> None:
    """Prepare a set as its authors would, without leaving its class where TFDS finds classes by name: it has to read the folder."""

    def info(self: Any) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def generate(self: Any, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows)

    def split_generators(self: Any, manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(rows) for split, rows in examples.items()}

    members = {"_info": info, "_generate_examples": generate, "_split_generators": split_generators}
    with tfds.core.registered.skip_registration():
        made = type(
            name,
            (tfds.core.GeneratorBasedBuilder,),
            {"VERSION": tfds.core.Version("1.0.0"), "__module__": __name__, **members},
        )
    settings = tfds.download.DownloadConfig(num_shards=shards)
    made(data_dir=folder).download_and_prepare(download_config=settings)


def pictures(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{"image": noise(1000 * seed + place), "label": place % 3} for place in range(count)]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set of 100 classes, each with its own colour, in several files."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 216, (CLASSES, 3))
    examples = {
        split: [
            {
                "image": (colours[place % CLASSES] + generator.integers(-40, 40, (SIDE, SIDE, 3))).astype(np.uint8),
                "label": place % CLASSES,
            }
            for place in range(count)
        ]
        for split, count in COUNTS.items()
    }
    features = {
        "image": tfds.features.Image(shape=(SIDE, SIDE, 3)),
        "label": tfds.features.ClassLabel(names=list(THINGS)),
    }
    prepare(folder, "Things", features, examples, shards=3)
    return folder


def load(folder: Path, name: str, **flags: object) -> Dataset:
    settings = {"data_dir": str(folder), "data_source": "prepared"} | flags
    return load_dataset(picture_config(f"tfds:{name}", folder / "cache", **settings))


def contents(split: LabelledImages, class_names: tuple[str, ...]) -> Counter[tuple[str, str]]:
    """What a split has: how often each picture with its label."""
    return Counter(
        (hashlib.sha256(image.tobytes()).hexdigest(), class_names[label])
        for image, label in zip(split.images[:], split.labels, strict=True)
    )


def test_a_hundred_classes_are_what_plain_tfds_reads(things: Path) -> None:
    found = load(things, "things")
    assert found.class_names == THINGS
    assert dict(found.contents.images) == COUNTS
    for split in COUNTS:
        examples = tfds.as_numpy(tfds.load("things", data_dir=things, download=False, split=split))
        wanted = Counter(
            (hashlib.sha256(example["image"].tobytes()).hexdigest(), THINGS[example["label"]]) for example in examples
        )
        assert contents(getattr(found, split), THINGS) == wanted


def test_the_second_time_nothing_is_decoded(things: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(things, "things").contents.digest
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_dataset", None)
    assert load(things, "things:1.0.0").contents.digest == before


def test_the_order_of_a_set_in_several_files_is_always_the_same(things: Path) -> None:
    assert len(list(things.rglob("*-train.tfrecord-*"))) == 3
    data = picture_config("tfds:things", things / "cache", data_dir=str(things), data_source="prepared").data
    first, second = (
        [(*picture[:3], picture.read()) for picture in list_tfds("things", data).pictures] for _ in range(2)
    )
    assert len(first) == sum(COUNTS.values())
    assert first == second


def test_a_set_moves_to_another_folder(things: Path, tmp_path: Path) -> None:
    shutil.copytree(things / "things", tmp_path / "things")
    assert load(tmp_path, "things").contents.digest == load(things, "things").contents.digest


def test_a_set_without_validation_and_test_is_divided(tmp_path: Path) -> None:
    prepare(tmp_path, "Divided", PICTURE, {"train": pictures(60)})
    found = load(tmp_path, "divided", test_share=0.2, validation_share=0.25)
    assert found.class_names == ("cat", "dog", "emu")
    assert dict(found.contents.images) == {"train": 36, "validation": 12, "test": 12}
    for split in ("train", "validation", "test"):
        labels = getattr(found, split).labels
        assert np.bincount(labels).tolist() == [len(labels) // 3] * 3


def test_splits_of_other_names_are_left_out(tmp_path: Path) -> None:
    prepare(tmp_path, "More", PICTURE, {"train": pictures(60), "unlabelled": pictures(9, 1), "test": pictures(6, 2)})
    assert dict(load(tmp_path, "more").contents.images) == {"train": 54, "validation": 6, "test": 6}


@pytest.mark.parametrize(("channels", "dtype", "expected"), [(1, np.uint8, 129), (3, np.uint8, 129), (1, np.uint16, 0)])
def test_pixels_of_every_kind_of_whole_numbers(channels: int, dtype: type, expected: int, tmp_path: Path) -> None:
    """Grey ones are repeated, and of 16 bits the upper 8 are kept, as of picture files."""
    image: NDArray[Any] = np.full((8, 8, channels), 129, dtype)
    features = PICTURE | {"image": tfds.features.Image(shape=(8, 8, channels), dtype=dtype)}
    examples = []
    for place in range(24):
        image[0, 0] = place  # so that all are different
        examples.append(
            {"image": (image.astype(np.int64) << (8 if dtype == np.uint16 else 0)).astype(dtype), "label": place % 3}
        )
    prepare(tmp_path, "Grey", features, {"train": examples})
    images = load(tmp_path, "grey", test_share=0.2, validation_share=0.25).train.images[:]
    assert np.unique(images[:, 1:]).tolist() == [129]
    assert images.shape[1:] == (8, 8, 3)


DETECTION = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
}
OBJECTS = [{"image": noise(0), "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}]}]


@pytest.mark.parametrize(
    ("features", "examples", "named"),
    [
        (DETECTION, OBJECTS, "its features are image, objects"),
        ({"label": PICTURE["label"], "text": tfds.features.Text()}, [{"label": 0, "text": "a"}], "label, text"),
        (PICTURE | {"label": tfds.features.Tensor(shape=(), dtype=np.int64)}, pictures(3), "image, label"),
        (
            PICTURE | {"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.float32)},
            [{"image": np.zeros((8, 8, 1), np.float32), "label": 0}],
            "an `image` of whole numbers",
        ),
    ],
)
def test_sets_of_other_tasks_are_refused_in_one_line(
    features: dict[str, Any], examples: list[dict[str, Any]], named: str, tmp_path: Path
) -> None:
    prepare(tmp_path, "Other", features, {"train": examples})
    with pytest.raises(UserError, match=named) as caught:
        load(tmp_path, "other")
    assert str(caught.value).startswith(
        "--dataset has to name a set with an `image` of whole numbers and a class `label`"
    )
    assert str(caught.value).endswith("Received: --dataset=tfds:other")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_detection_set_is_refused_before_it_is_downloaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pascal VOC is 868 MB."""
    with pytest.raises(
        UserError, match=r"its features are image, image/filename, labels, .* Received: --dataset=tfds:voc/2007$"
    ):
        load(tmp_path, "voc/2007", data_source="auto")
    assert "ownload" not in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing_such", "nothing_such not found"),
        ("mnist", "it is not prepared in "),
        ("mnist:9.9.9", "mnist"),
        ("things/large", "not found"),
        ("a b", "Parsing builder name string a b failed"),
        ("../things", "Parsing builder name"),
        ("things[train]", "Parsing builder name"),
    ],
)
def test_a_set_that_is_not_there_is_named(name: str, reason: str, things: Path) -> None:
    with pytest.raises(UserError, match=rf"^--dataset cannot be read: .*{reason}") as caught:
        load(things, name)
    assert str(caught.value).endswith(f"Received: --dataset=tfds:{name}")
    assert "\n" not in str(caught.value)


def test_a_set_without_any_split_for_training_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, "Extra", PICTURE, {"extra": pictures(6)})
    with pytest.raises(UserError, match=r"with a train split; its splits are extra. Received: --dataset=tfds:extra"):
        load(tmp_path, "extra")


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, Path.unlink])
def test_a_damaged_file_of_a_set_is_named_and_leaves_no_cache(
    damage: Callable[[Path], None], things: Path, tmp_path: Path
) -> None:
    shutil.copytree(things / "things", tmp_path / "things")
    damage(next(iter(sorted((tmp_path / "things").rglob("*-validation.tfrecord-*")))))
    with pytest.raises(UserError, match=r"^--dataset cannot be read: .* Received: ") as caught:
        load(tmp_path, "things")
    assert "\n" not in str(caught.value)
    assert [each for each in tmp_path.glob("cache/*") if each.suffix != ".lock"] == []


def test_a_cache_is_made_again_if_the_set_is_prepared_again(tmp_path: Path) -> None:
    prepare(tmp_path, "Again", PICTURE, {"train": pictures(60)})
    before = load(tmp_path, "again").contents.digest
    shutil.rmtree(tmp_path / "again")
    prepare(tmp_path, "Again", PICTURE, {"train": pictures(60, 1)})
    assert load(tmp_path, "again").contents.digest != before


def test_pictures_without_labels_or_with_broken_content_are_named(tmp_path: Path) -> None:
    """Some sets keep the labels of their test split back, and write -1."""
    train: list[dict[str, Any]] = pictures(60)
    train[7]["image"] = io.BytesIO(encoded(noise(7))[:-70])
    examples = {"train": train, "test": [{"image": noise(place), "label": -1} for place in range(100, 103)]}
    prepare(tmp_path, "Held", PICTURE, examples)
    with pytest.raises(UserError, match="4 files cannot be used") as caught:
        load(tmp_path, "held")
    assert all(f"test[{place}]: it has no label" in str(caught.value) for place in range(3))
    found = load(tmp_path, "held", bad_images="skip")
    assert Counter(each.path.partition("[")[0] for each in found.contents.skipped) == {"test": 3, "train": 1}
    assert sum(count for _, count in found.contents.images) == 59


@pytest.mark.slow
def test_a_run_of_a_hundred_classes_by_tfds_ends_with_a_report(things: Path, tmp_path: Path) -> None:
    """End to end by the commands, from another folder than the one in which the run was made."""
    shutil.copytree(things / "things", tmp_path / "sets" / "things")
    flags = (
        *("--dataset=tfds:things", "--data_dir=sets", "--cache_dir=cache", "--backbone=resnet20", "--weights=none"),
        *("--image_size=32", "--finetune_train_batch_norm", "--head_epochs=0", "--finetune_epochs=1"),
        *("--finetune_steps_per_epoch=5", "--global_batch_size=40", "--workdir=run"),
    )
    done = run("train", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pictures: 1,200 of 100 classes, 16 x 16 px" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["test"]["n"], list(result["test"]["per_class"])) == (200, list(THINGS))
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert "It tells 100 classes apart: thing 0, thing 1, thing 2" in card
    assert "type: tfds\n" in card
    assert json.loads((tmp_path / "run" / "dataset.json").read_text())["images"] == COUNTS
    shutil.move(tmp_path / "sets", tmp_path / "moved")
    done = run("evaluate", "--model=run", "--data_dir=moved", "--test_time_augmentation=flip", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the metrics agree with" in done.stdout
