"""The weights of the classes: where they come from, what they do to the loss, and what a resumed run says about them."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from small_runs import set_up_small, small_config, train_small

from cifar_keras.config import DistillationConfig, from_values
from cifar_keras.data.pipeline import Targets
from cifar_keras.errors import UserError
from cifar_keras.files import paths
from cifar_keras.training import setup
from cifar_keras.training.class_weights import (
    check_as_begun,
    check_class_weights,
    keep_class_weights,
    make_class_weights,
)
from cifar_keras.training.fit import Learner
from cifar_keras.training.teacher import Distillation
from cifar_keras.training.tracking import RunLog

NAMES = ("cat", "dog", "ship")
LABELS = np.array([0] * 15 + [1] * 3 + [2] * 2)


def test_without_weights_nothing_is_weighed() -> None:
    assert make_class_weights("none", LABELS, NAMES) is None


def test_auto_gives_every_class_the_same_part_of_the_loss() -> None:
    weights = make_class_weights("auto", LABELS, NAMES)
    assert weights is not None
    np.testing.assert_allclose(weights, [20 / (3 * 15), 20 / (3 * 3), 20 / (3 * 2)], rtol=1e-6)
    assert weights[LABELS].mean() == pytest.approx(1)
    parts = np.bincount(LABELS, weights=weights[LABELS])
    np.testing.assert_allclose(parts, parts[0], rtol=1e-6)


def test_a_class_without_an_image_counts_for_nothing() -> None:
    weights = make_class_weights("auto", LABELS, ("cat", "dog", "ship", "unicorn"))
    assert weights is not None
    np.testing.assert_allclose(weights, [20 / 45, 20 / 9, 20 / 6, 0], rtol=1e-6)


def written(folder: Path, content: str) -> str:
    (folder / "weights.json").write_text(content, "utf-8")
    return str(folder / "weights.json")


def test_a_file_names_the_classes_in_any_order(tmp_path: Path) -> None:
    file = written(tmp_path, '{"ship": 4, "cat": 0.25, "dog": 0}')
    weights = make_class_weights(file, LABELS, NAMES)
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == [0.25, 0, 4]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"cat": 1, "dog": 1', r"weights\.json is not valid JSON: "),
        ('{"cat": 1, "dog": 1, "cat": 2, "ship": 1}', r"weights\.json is not valid JSON: the name 'cat' comes twice"),
        ("[1, 1, 1]", "--class_weights has to hold an object"),
        ("[" * 100_000, r"weights\.json is not valid JSON: "),
        *(
            (
                f'{{"cat": {weight}, "dog": 1, "ship": 1}}',
                "--class_weights has to give each class a number from 0 to 1,000,000",
            )
            for weight in ("-1", "-1e-9", "1e999", "1000001", '"1"', "true", "null", "[1]", "9" * 400)
        ),
        ('{"cat": NaN, "dog": 1, "ship": 1}', r"weights\.json is not valid JSON: NaN is not a number"),
        ('{"cat": Infinity, "dog": 1, "ship": 1}', r"weights\.json is not valid JSON: Infinity is not a number"),
    ],
)
def test_a_file_of_no_weights_is_refused_before_the_images_are_loaded(
    content: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^{reason}.*\. Received: .*weights\.json$"):
        check_class_weights(written(tmp_path, content))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"cat": 1, "dog": 1}, "has to name each class of the images: missing ship"),
        ({"cat": 1, "dog": 1, "ship": 1, "Ship": 1}, "has to name each class of the images: unknown Ship"),
        ({"cat": 1}, "has to name each class of the images: missing dog, ship"),
        (
            {f"class {number}": 1 for number in range(1002)},
            "has to name each class of the images: missing cat, dog, ship; "
            "unknown class 0, class 1, class 2, class 3, class 4 and 997 others",
        ),
        ({}, "has to name each class of the images: missing cat, dog, ship"),
        ({"cat": 0, "dog": 0, "ship": 0}, "has to give a class of the train split a weight above 0"),
    ],
)
def test_a_file_about_other_classes_is_refused(weights: dict[str, float], reason: str, tmp_path: Path) -> None:
    file = written(tmp_path, json.dumps(weights))
    check_class_weights(file)
    with pytest.raises(UserError, match=rf"^--class_weights {reason}\. Received: .*weights\.json$"):
        make_class_weights(file, LABELS, NAMES)


@pytest.mark.parametrize("value", ["missing.json", "balanced", "~nobody-of-this-name/a.json"])
def test_what_is_no_file_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=rf"^--class_weights .* Received: {value}$"):
        check_class_weights(value)


def log_softmax(logits: Any) -> Any:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("has_teacher", [False, True])
def test_the_training_loss_is_weighted_and_nothing_else(has_teacher: bool) -> None:
    """One label is mixed. The sum is divided by the images; a mean by weights would be larger here. The teacher's part is as it was."""
    generator = np.random.default_rng(0)
    logits, teacher = (generator.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0.7, 0.3, 0]], np.float32)
    weights = np.array([0.5, 2, 3], np.float32)
    of_image = np.array([0.5, 0.5, 3, 0.7 * 0.5 + 0.3 * 2])
    cross_entropy = -((0.9 * labels + 0.1 / 3) * log_softmax(logits)).sum(axis=1)
    ratio = log_softmax(teacher) - log_softmax(logits)
    distance = (np.exp(log_softmax(teacher)) * ratio).sum(axis=1).mean()

    inputs = keras.Input([3])
    how = Distillation(DistillationConfig("teacher", 0.25, 1.0)) if has_teacher else None
    learner = Learner(keras.Model(inputs, keras.layers.Identity()(inputs)), how, weights)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    learner.compile("sgd", loss, metrics=[keras.metrics.CategoricalCrossentropy("cross_entropy", from_logits=True)])
    targets = Targets(labels=labels, teacher=teacher) if has_teacher else Targets(labels=labels)

    def whole(from_labels: float) -> float:
        return 0.75 * from_labels + 0.25 * distance if has_teacher else from_labels

    found = {
        training: float(learner.compute_loss(logits, targets, logits, training=training)) for training in (True, False)
    }
    assert found[True] == pytest.approx(whole((of_image * cross_entropy).mean()), rel=1e-5)
    assert found[False] == pytest.approx(whole(cross_entropy.mean()), rel=1e-5)
    measured = learner.compute_metrics(logits, targets, logits)["cross_entropy"]
    assert float(measured) == pytest.approx(-(labels * log_softmax(logits)).sum(axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_classes_that_weigh_nothing_are_not_learned(cached: bool, tmp_path: Path) -> None:
    """Of ten classes only two weigh anything: the head, whose bias begins at 0, learns to say no other, from images and from features."""
    config = small_config(finetune_epochs=0, head_cached_features=cached, flip=False, head_learning_rate=0.05)
    ready = set_up_small(config)
    weights = np.array([1, 1, *[0] * 8], np.float32)
    train_small(config, ready._replace(class_weights=weights), RunLog(tmp_path), tmp_path)
    images = ready.dataset.test.images
    assert set(ready.classifier.predict(images, verbose=0).argmax(axis=1)) <= {0, 1}


def test_a_run_goes_on_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    """Its settings are the same, and its file is not; what is gone or damaged is named, too."""
    file = written(tmp_path, json.dumps({f"class {number}": 1 + number / 7 for number in range(3)}))
    flags = {"data_source": "synthetic", "synthetic_classes": 3, "backbone": "resnet20", "weights": "none"}
    config = from_values({**flags, "image_size": 32, "global_batch_size": 12, "class_weights": file})
    workdir = tmp_path / "run"
    workdir.mkdir()
    ready = setup.set_up(config, workdir)
    keep_class_weights(ready.class_weights, ready.dataset.class_names, workdir)
    again = setup.set_up(config, workdir)
    np.testing.assert_array_equal(ready.class_weights, again.class_weights)
    written(tmp_path, json.dumps({f"class {number}": 1 + number / 8 for number in range(3)}))
    before = (workdir / paths.CLASS_WEIGHTS).read_bytes()
    with pytest.raises(
        UserError, match=r"^--class_weights has other weights than when the run began.* Received: .*run$"
    ):
        setup.set_up(config, workdir)
    assert (workdir / paths.CLASS_WEIGHTS).read_bytes() == before


def test_a_run_without_weights_keeps_none(tmp_path: Path) -> None:
    keep_class_weights(None, NAMES, tmp_path)
    assert list(tmp_path.iterdir()) == []
    check_as_begun(None, NAMES, tmp_path)
    check_as_begun(np.ones(3, np.float32), NAMES, tmp_path)  # killed before it kept them, and before its first step
