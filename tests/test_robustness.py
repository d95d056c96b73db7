from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

from cifar_keras.config import Views
from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.cifar10.test_sets import OtherSet
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.data.types import LabelledImages
from cifar_keras.evaluation import robustness
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt

TEST = make_dataset(0).test
WEIGHTS = np.random.default_rng(0).normal(size=(32 * 32 * 3, 10)) / 2000


def linear(images: NDArray[np.uint8], title: str) -> NDArray[np.float32]:
    """A model that is not the same for a mirror image, and linear, so that a mean of images gives the mean of logits."""
    assert title
    return (images.reshape(len(images), -1) @ WEIGHTS).astype(np.float32)


def moved(images: NDArray[np.uint8], down: int) -> NDArray[np.uint8]:
    """Move by one pixel, down and right or up and left, by hand."""
    result = np.empty_like(images)
    for row in range(32):
        for column in range(32):
            source = [place - down for place in (row, column)]
            source = [1 if place < 0 else 30 if place > 31 else place for place in source]  # reflected
            result[:, row, column] = images[:, source[0], source[1]]
    return result


def test_views_are_the_image_its_mirror_image_and_their_shifts() -> None:
    for views, shifted in (
        (Views.NONE, []),
        (Views.FLIP, [(1.0, TEST.images[:])]),
        (
            Views.FLIP_AND_SHIFTS,
            [(0.5, TEST.images[:]), (0.25, moved(TEST.images[:], -1)), (0.25, moved(TEST.images[:], 1))],
        ),
    ):
        mean = sum(fraction * images.astype(float) for fraction, images in robustness.views_of(TEST.images[:], views))
        wanted = sum(fraction * (images + images[:, :, ::-1].astype(float)) / 2 for fraction, images in shifted)
        np.testing.assert_allclose(mean, wanted if shifted else TEST.images[:])


def test_test_time_augmentation_averages_logits() -> None:
    none, row = robustness.with_views(linear, TEST, linear(TEST.images[:], "plain"), Views.FLIP, CLASS_NAMES, seed=0)
    mirrored = np.ascontiguousarray(TEST.images[:][:, :, ::-1])
    logits = (linear(TEST.images[:], "a") + linear(mirrored, "b")) / np.float32(2)
    assert (none["kind"], none["name"], none["n"]) == ("views", "none", 100)
    assert none["accuracy"] == (linear(TEST.images[:], "c").argmax(axis=1) == TEST.labels).mean()
    assert (row["kind"], row["name"], row["n"]) == ("views", "flip", 100)
    assert row["accuracy"] == sklearn_metrics.accuracy_score(TEST.labels, logits.argmax(axis=1))
    assert row["loss"] == pytest.approx(sklearn_metrics.log_loss(TEST.labels, softmax(logits)), rel=1e-5)
    low, high = row["intervals"]["accuracy"]
    assert low < row["accuracy"] < high


def test_every_corruption_has_a_row_and_the_mean_is_theirs() -> None:
    rows, mean = robustness.with_corruptions(linear, TEST, linear(TEST.images[:], "plain"), CLASS_NAMES, seed=0)
    assert [row["name"] for row in rows] == [
        "none",
        *(f"{name} {severity}" for name in CORRUPTIONS for severity in SEVERITIES),
    ]
    accuracy = np.mean([row["accuracy"] for row in rows[1:]])
    assert mean["accuracy"] == pytest.approx(accuracy)
    assert (mean["sets"], mean["n"], mean["strengths"]) == (40, 100, "CIFAR-10-C")
    assert mean["interval"][0] < accuracy < mean["interval"][1]
    assert rows[0]["accuracy"] == (linear(TEST.images[:], "test").argmax(axis=1) == TEST.labels).mean()


def test_the_mean_of_several_sets_is_resampled_by_images() -> None:
    """Sets that are the same tell no more than one: the interval is that of one, not narrower."""
    right = np.random.default_rng(0).random(200) < 0.9
    one, ten = (robustness.mean_accuracy([right] * sets, seed=3) for sets in (1, 10))
    assert ten == one | {"sets": 10}
    wanted = stats.bootstrap((right,), np.mean, method="basic", n_resamples=20_000, rng=0).confidence_interval
    assert one["interval"] == pytest.approx((wanted.low, min(1.0, wanted.high)), abs=0.006)
    assert robustness.mean_accuracy([np.arange(50) > 0], seed=0)["interval"][1] == 1.0  # 49 of 50 may be all


def test_only_some_images_are_corrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "CORRUPTED_IMAGES", 30)
    monkeypatch.setattr(robustness, "CORRUPTIONS", ["contrast"])
    drawn: list[NDArray[np.uint8]] = []

    def remembered(images: NDArray[np.uint8], *arguments: Any, **settings: Any) -> NDArray[np.uint8]:
        drawn.append(images)
        return corrupt(images, *arguments, **settings)

    monkeypatch.setattr(robustness, "corrupt", remembered)
    rows, mean = robustness.with_corruptions(linear, TEST, linear(TEST.images[:], "plain"), CLASS_NAMES, seed=0)
    assert {row["n"] for row in rows} == {mean["n"]} == {30}
    images, labels = drawn[0], rows[0]["accuracy"]  # those that the first corruption was made of
    chosen = [np.flatnonzero((TEST.images == image).all(axis=(1, 2, 3)))[0] for image in images]
    assert labels == (linear(TEST.images[np.array(chosen)], "chosen").argmax(axis=1) == TEST.labels[chosen]).mean()
    again, _ = robustness.with_corruptions(linear, TEST, linear(TEST.images[:], "plain"), CLASS_NAMES, seed=1)
    assert again[0]["loss"] != rows[0]["loss"]


def test_people_are_measured_by_cross_entropy() -> None:
    soft = np.zeros((2, 10))
    soft[0, :2] = 0.5  # two people of four see each
    soft[1, 3] = 1.0
    logits = np.zeros((2, 10), np.float32)
    logits[0, 0] = np.log(3.0)  # 3/12 of the probability, and 1/12 for each other class
    logits[1, 3] = np.log(27.0)  # 27/36
    split = LabelledImages(TEST.images[:2], np.array([0, 3]))
    row, right = robustness.on_other_set(lambda *_: logits, OtherSet("cifar10_h", split, soft), CLASS_NAMES, seed=0)
    wanted = [-(np.log(3 / 12) + np.log(1 / 12)) / 2, -np.log(27 / 36)]
    assert row["human_cross_entropy"] == pytest.approx(np.mean(wanted))
    assert row["human_entropy"] == pytest.approx(np.log(2) / 2)
    low, high = row["intervals"]["human_cross_entropy"]
    assert low < np.mean(wanted) < high
    assert row["accuracy"] == 1.0
    np.testing.assert_array_equal(right, [True, True])
    plain, _ = robustness.on_other_set(lambda *_: logits, OtherSet("cifar10_1/v6", split), CLASS_NAMES, seed=0)
    assert set(row) - set(plain) == {"human_cross_entropy", "human_entropy"}


def test_new_rows_take_the_place_of_old_ones() -> None:
    old = [{"kind": "views", "name": "flip", "n": 1}, {"kind": "corruption", "name": "none", "n": 2}]
    new = [{"kind": "views", "name": "flip", "n": 3}, {"kind": "test set", "name": "none", "n": 4}]
    assert robustness.merged(old, new) == [new[0], old[1], new[1]]
