"""The folders are written by TFDS's own builders, which get arrays in place of their downloads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_runs import TEMPERATURE, finish_small_run
from tensorflow_datasets.image_classification.cifar10_1 import Cifar10_1
from tensorflow_datasets.image_classification.cifar10_corrupted import Cifar10Corrupted
from tensorflow_datasets.image_classification.cifar10_h.cifar10_h import Cifar10H
from tensorflow_datasets.image_classification.cifar10_n.cifar10_n import Cifar10N

from cifar_keras import evaluate
from cifar_keras.data.cifar10.test_sets import NOISY_LABELS, find_other_sets, read_other_set
from cifar_keras.data.types import LabelledImages
from cifar_keras.errors import UserError
from cifar_keras.evaluation.calibration import softmax

COUNT = 12
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
LABELS = np.arange(COUNT) % 10
SOFT = GENERATOR.dirichlet(np.ones(10), COUNT).astype(np.float32)
NOISY = {name: (LABELS + 1 + place) % 10 for place, name in enumerate(NOISY_LABELS)}
HELD_OUT = LabelledImages(IMAGES[[9, 2, 5]], LABELS[[9, 2, 5]])


def prepare(original: type[tfds.core.GeneratorBasedBuilder], split: str, data_dir: Path, **settings: Any) -> None:
    with tfds.core.registered.skip_registration():

        class Local(original):
            name = original.name
            __module__ = original.__module__
            pkg_dir_path = Path(__file__).parent
            MANUAL_DOWNLOAD_INSTRUCTIONS = None

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {split: self._generate_examples()}

            def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
                for place, image in enumerate(IMAGES):
                    known = {"image": image, "label": LABELS[place], "soft_label": SOFT[place], "id": str(place)}
                    known |= {name: labels[place] for name, labels in NOISY.items()}
                    known |= {"human_labels": list(range(place % 3)), "reaction_times": [0.5] * (place % 3)}
                    yield (
                        place,
                        {name: known.get(name, _nothing(feature)) for name, feature in self.info.features.items()},
                    )

    Local(data_dir=data_dir, **settings).download_and_prepare()


def _nothing(feature: Any) -> Any:
    return [] if isinstance(feature, tfds.features.Sequence) else 0


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    prepare(Cifar10_1, "test", folder, config="v4")
    prepare(Cifar10_1, "test", folder, config="v6")
    for name in ("fog_3", "brightness_1"):
        prepare(Cifar10Corrupted, "test", folder, config=name)
    prepare(Cifar10H, "test", folder)
    prepare(Cifar10N, "train", folder)
    return folder


def in_order(split: LabelledImages) -> list[int]:
    """Which of `IMAGES` each image is."""
    return [int(np.flatnonzero((image == IMAGES).all(axis=(1, 2, 3)))[0]) for image in split.images[:]]


@pytest.mark.parametrize("name", ["cifar10_1/v4", "cifar10_1/v6", "cifar10_corrupted/fog_3", "cifar10_h"])
def test_a_set_is_read_with_its_labels(name: str, data_dir: Path) -> None:
    (found,) = read_other_set(name, str(data_dir), HELD_OUT)
    assert found.name == name
    order = in_order(found.split)
    assert sorted(order) == list(range(COUNT))
    assert found.split.labels.dtype == np.int64
    np.testing.assert_array_equal(found.split.labels, LABELS[order])
    if name == "cifar10_h":
        assert found.soft_labels is not None
        np.testing.assert_allclose(found.soft_labels, SOFT[order], rtol=1e-6)
    else:
        assert found.soft_labels is None


def test_of_the_noisy_labels_only_images_that_were_held_out_are_given(data_dir: Path) -> None:
    sets = read_other_set("cifar10_n", str(data_dir), HELD_OUT)
    assert [each.name for each in sets] == [f"cifar10_n/{label}" for label in NOISY_LABELS]
    for each, (name, labels) in zip(sets, NOISY.items(), strict=True):
        order = in_order(each.split)
        assert sorted(order) == [2, 5, 9], name
        np.testing.assert_array_equal(each.split.labels, labels[order])


def test_noisy_labels_of_other_images_are_refused(data_dir: Path) -> None:
    others = HELD_OUT._replace(images=255 - HELD_OUT.images[:])
    with pytest.raises(UserError, match=r"^--test_sets=cifar10_n .*Received: images that are others$"):
        read_other_set("cifar10_n", str(data_dir), others)


def test_names_stand_for_what_is_there(data_dir: Path) -> None:
    names = ["cifar10_h", "cifar10_1", "cifar10_1/v4", "cifar10_corrupted", "cifar10_corrupted/fog_3", "cifar10_1/v6"]
    found = find_other_sets(names, str(data_dir))
    assert found == [
        *("cifar10_h", "cifar10_1/v6", "cifar10_1/v4"),
        *("cifar10_corrupted/brightness_1", "cifar10_corrupted/fog_3"),
    ]
    assert find_other_sets([], str(data_dir)) == []


@pytest.mark.parametrize(
    "name", ["cifar10_1", "cifar10_1/v5", "cifar10_corrupted", "cifar10_corrupted/fog_3", "cifar10_h", "cifar10_n"]
)
def test_what_is_not_prepared_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--test_sets: {name}.* is not prepared in .*Received: {name}(/v6)?$"):
        find_other_sets([name], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_evaluate_measures_them(data_dir: Path, tmp_path: Path) -> None:
    path = finish_small_run(tmp_path / "run")
    sets = "cifar10_1/v4,cifar10_corrupted,cifar10_h"
    evaluate.main(["evaluate", f"--model={path}", f"--data_dir={data_dir}", f"--test_sets={sets}"])
    found = json.loads((path / "further_evaluation.json").read_text())
    assert [row["name"] for row in found["rows"]] == [
        *("cifar10_1/v4", "cifar10_corrupted/brightness_1", "cifar10_corrupted/fog_3", "cifar10_h")
    ]
    logits = keras.models.load_model(path / "model.keras").predict(IMAGES, verbose=0)
    accuracy = (logits.argmax(axis=1) == LABELS).mean()
    assert {row["accuracy"] for row in found["rows"]} == {accuracy}
    interval = found["rows"][1]["intervals"]["accuracy"]  # both are the same images, so that two say no more than one
    mean = {"sets": 2, "n": len(LABELS), "accuracy": pytest.approx(accuracy), "interval": pytest.approx(interval)}
    assert found["means"] == {"cifar10_corrupted": mean}
    surprise = -(SOFT * np.log(softmax(logits, TEMPERATURE))).sum(axis=1).mean()
    assert found["rows"][-1]["human_cross_entropy"] == pytest.approx(surprise, rel=1e-4)
    evaluate.main(
        ["evaluate", f"--model={path}", f"--data_dir={data_dir}", "--test_sets=cifar10_corrupted/fog_3,cifar10_h"]
    )
    again = json.loads((path / "further_evaluation.json").read_text())
    assert again == found  # and the mean is still that of all of it
    html = (path / "report.html").read_text()
    assert f"Mean over the 2 sets of cifar10_corrupted: {100 * accuracy:.2f}" in html
    assert "cifar10_h has the test images with the labels of many people" in html


def test_a_broken_set_is_named(data_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "cifar10_1" / "v6" / "1.1.0"
    broken.mkdir(parents=True)
    for file in (data_dir / "cifar10_1" / "v6" / "1.1.0").iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[: len(content) // 2] if "tfrecord" in file.name else content)
    with pytest.raises(UserError, match=r"^--test_sets: cifar10_1/v6.*Received: cifar10_1/v6$"):
        read_other_set("cifar10_1/v6", str(tmp_path), HELD_OUT)
