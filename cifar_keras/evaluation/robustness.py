"""Robustness: measure a model with test-time augmentation, on corrupted images, on other test sets, and on unknown images.

Every row is measured at the temperature that the model serves with.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import CORRUPTION_SUITE, EvaluationConfig, RunConfig, Views, other_sets_of, unknown_folder_of
from cifar_keras.data.cifar10.test_sets import OtherSet, find_other_sets, read_other_set
from cifar_keras.data.pictures.finding import find_unknown
from cifar_keras.data.types import Dataset, LabelledImages
from cifar_keras.errors import UserError
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, published_set
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.evaluation.selective import separation
from cifar_keras.evaluation.uncertainty import mean_interval
from cifar_keras.exporting.classify import classify
from cifar_keras.exporting.saved_model import serve_all
from cifar_keras.files.progress_bar import progress

METRICS = ("accuracy", "loss", "brier", "calibration_error")
# A limit, because eight corruptions at five severities take 40 forward passes of each image.
CORRUPTED_IMAGES = 1000
# Images of which several views are in memory at a time.
PART_BYTES = 2**28

# A function from uint8 images [n, height, width, 3], and the title of the progress bar, to logits divided by the temperature, float32
# [n, classes].
Predict = Callable[[NDArray[np.uint8], str], NDArray[np.float32]]
Kind = Literal["views", "corruption", "test set"]


class Robustness(NamedTuple):
    """Metrics that the settings ask for in addition to those of the test split."""

    rows: list[dict[str, Any]]  # each is what `row` returned
    means: dict[str, Any]  # what `mean_accuracy` returned, by the name of a suite
    unknown: dict[str, Any]  # what `on_unknown` returned, by the name of the images


def check_wanted(settings: EvaluationConfig, data_dir: str) -> None:
    """Check that the images are there which the settings ask for in addition to the run's own splits.

    Raises:
        UserError: a test set is not prepared, or the folder of unknown images has none.
    """
    find_other_sets(other_sets_of(settings), data_dir)
    find_unknown(unknown_folder_of(settings))


def measure_robustness(
    model: tf.Module, logits: NDArray[np.float32], temperature: float, dataset: Dataset, config: RunConfig
) -> Robustness:
    """Return the metrics that the settings ask for in addition to those of the run's own splits.

    Args:
        model: a loaded SavedModel.
        logits: float32 `[n, classes]`, the model's logits of the test images.
        temperature: the temperature that the model serves with.
        dataset: the data set of the run.
        config: the config of the run, with the views and the other test sets that are wanted. Its seed is that of the noise, of the
            choice of images and of the resamples.

    Raises:
        UserError: a test set is not prepared, or the folder of unknown images has none.
    """
    test, class_names, seed, settings = dataset.test, dataset.class_names, config.seed, config.evaluation
    plain = logits / np.float32(temperature)
    names, data_dir = other_sets_of(settings), config.data.data_dir
    # This comes first, so that a test set that is not prepared is reported before anything takes long.
    check_wanted(settings, data_dir)
    unknown = find_unknown(unknown_folder_of(settings))

    def predict(images: NDArray[np.uint8], title: str) -> NDArray[np.float32]:
        return serve_all(model, images, config.data.global_batch_size, title).logits / np.float32(temperature)

    rows: list[dict[str, Any]] = []
    means: dict[str, Any] = {}
    if settings.test_time_augmentation is not Views.NONE:
        rows += with_views(predict, test, plain, settings.test_time_augmentation, class_names, seed=seed)
    if CORRUPTION_SUITE in settings.test_sets.split(","):
        measured, means[CORRUPTION_SUITE] = with_corruptions(predict, test, plain, class_names, seed=seed)
        rows += measured
    of_sets, mean = on_other_sets(predict, names, data_dir, dataset, seed=seed)
    of_unknown = (
        {settings.unknown: on_unknown(model, unknown, softmax(plain).max(axis=1), seed=seed)} if unknown else {}
    )
    return Robustness(rows + of_sets, means | mean, of_unknown)


def on_other_sets(
    predict: Predict, names: Sequence[str], data_dir: str, dataset: Dataset, *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of other test sets, and the mean over each suite that was asked for as a whole."""
    rows: list[dict[str, Any]] = []
    right_of: dict[str, list[NDArray[np.bool_]]] = {}
    for name in find_other_sets(names, data_dir):
        for other in read_other_set(name, data_dir, dataset.validation):
            measured, right = on_other_set(predict, other, dataset.class_names, seed=seed)
            rows.append(measured)
            right_of.setdefault(other.suite, []).append(right)
    return rows, {suite: mean_accuracy(right, seed=seed) for suite, right in right_of.items() if suite in names}


def with_views(
    predict: Predict,
    test: LabelledImages,
    plain: NDArray[np.float32],
    views: Views,
    class_names: Sequence[str],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Return two rows: one of the test images as they are, then one of the mean logits of several views of each image.

    Args:
        predict: the model.
        test: images and labels.
        plain: the logits that `predict` returned for the images as they are.
        views: which views.
        class_names: the class names of the model.
        seed: seed of the resamples.
    """
    logits = np.empty_like(plain)
    count = max(1, PART_BYTES // int(np.prod(test.images.shape[1:])))
    for start in range(0, len(plain), count):
        part = slice(start, start + count)
        (weight, _), *others = views_of(test.images[part], views)
        logits[part] = weight * plain[part] + sum(
            weight * predict(images, f"test, {views}") for weight, images in others
        )
    return [
        row("views", name, of_views, test.labels, class_names, seed=seed)
        for name, of_views in ((Views.NONE, plain), (views, logits.astype(np.float32)))
    ]


def views_of(images: NDArray[np.uint8], views: Views) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield each view of images, uint8 `[n, height, width, 3]`, after its weight in the mean. The images as they are come first.

    A shift moves the image by a pixel, up and left or down and right, and reflection fills the open pixels. Both shifts together count
    as much as the image that stays, as in airbench (arXiv:2404.00498).
    """
    if views is Views.NONE:
        yield 1.0, images
        return
    shifts = [(1.0, images)]
    if views is Views.FLIP_AND_SHIFTS:
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        shifts = [(0.5, images), (0.25, padded[:, :-2, :-2]), (0.25, padded[:, 2:, 2:])]
    for weight, shifted in shifts:
        yield weight / 2, shifted
        yield weight / 2, np.ascontiguousarray(shifted[:, :, ::-1])


def with_corruptions(
    predict: Predict, test: LabelledImages, plain: NDArray[np.float32], class_names: Sequence[str], *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the metrics of corrupted test images: at most `CORRUPTED_IMAGES` images, drawn by the seed.

    Args:
        predict: the model.
        test: images and labels.
        plain: the logits that `predict` returned for the images as they are.
        class_names: the class names of the model.
        seed: seed of the choice of images, of the noise and of the resamples.

    Returns:
        The rows, and `mean_accuracy` of the corrupted images. There is a row for the same images as they are, and one for each
        corruption and severity. `strengths` of the mean names the published set whose strengths they have.
    """
    count = min(CORRUPTED_IMAGES, len(test.labels))
    chosen = np.sort(np.random.default_rng(seed).choice(len(test.labels), count, replace=False))
    images, labels = test.images[chosen], test.labels[chosen]
    rows = [row("corruption", "none", plain[chosen], labels, class_names, seed=seed)]
    right = []
    for name, severity in ((name, severity) for name in CORRUPTIONS for severity in SEVERITIES):
        logits = predict(corrupt(images, name, severity, seed=seed), f"{name} {severity}")
        rows.append(row("corruption", f"{name} {severity}", logits, labels, class_names, seed=seed))
        right.append(logits.argmax(axis=1) == labels)
    return rows, mean_accuracy(right, seed=seed) | {"strengths": published_set(images)}


def mean_accuracy(right: Sequence[NDArray[np.bool_]], *, seed: int) -> dict[str, Any]:
    """Return the mean accuracy on several sets of the same images, as `sets`, `n`, `accuracy` and its `interval`.

    An image is resampled together with all of its corrupted versions, because they are not independent of each other.

    Args:
        right: for each set, bool `[n]`, whether the model is right about each image. The images have the same order in all sets.
        seed: seed of the resamples.
    """
    of_image = np.mean(right, axis=0)
    interval = mean_interval(of_image, seed=seed, highest=1.0)
    return {"sets": len(right), "n": len(of_image), "accuracy": float(of_image.mean()), "interval": interval}


def on_other_set(
    predict: Predict, other: OtherSet, class_names: Sequence[str], *, seed: int
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Return the row of another test set, and whether the model is right about each image, bool `[n]`.

    If people's soft labels are known, the row also has two values in nats. `human_cross_entropy` is the mean of
    `-sum over classes of fraction * ln(probability)` (Peterson et al., arXiv:1908.07086). `human_entropy` is the least that it can be.
    """
    logits = predict(other.split.images[:], other.name)
    values = row("test set", other.name, logits, other.split.labels, class_names, seed=seed)
    if other.soft_labels is not None:
        smallest = np.finfo(np.float64).tiny
        surprise = -(other.soft_labels * np.log(np.maximum(softmax(logits), smallest))).sum(axis=1)
        entropy = -(other.soft_labels * np.log(np.maximum(other.soft_labels, smallest))).sum(axis=1)
        values |= {"human_cross_entropy": float(surprise.mean()), "human_entropy": float(entropy.mean())}
        values["intervals"]["human_cross_entropy"] = mean_interval(surprise, seed=seed)
    return values, logits.argmax(axis=1) == other.split.labels


def on_unknown(model: tf.Module, files: Sequence[Path], known: NDArray[np.float64], *, seed: int) -> dict[str, Any]:
    """Return how well the largest probability tells unknown pictures from the test images: what `selective.separation` returns.

    `known` and `unknown` are the numbers of images, and `unreadable` is the number of files that are left out.

    Args:
        model: a loaded SavedModel.
        files: pictures of none of its classes.
        known: float64 `[n]`, the largest probability of each test image, as served.
        seed: seed of the resamples.

    Raises:
        UserError: none of the files can be read.
    """
    confidence: list[np.float32] = []
    for _, probabilities in progress(classify(model, files), desc="unknown", unit="file", total=len(files)):
        if isinstance(probabilities, UserError):
            error = probabilities
        else:
            confidence.append(probabilities.max())
    if not confidence:
        raise error
    # Both in the precision of the SavedModel, so that its equal probabilities are equal.
    found = separation(known.astype(np.float32), np.array(confidence), seed=seed)
    counts = {"known": len(known), "unknown": len(confidence), "unreadable": len(files) - len(confidence)}
    return counts | found._asdict()


def row(
    kind: Kind,
    name: str,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return a row: `kind`, `name`, `n`, `METRICS` and their `intervals`."""
    metrics = classification_metrics(logits, labels, class_names, seed=seed)
    intervals = {metric: metrics["intervals"][metric] for metric in METRICS}
    return {"kind": kind, "name": str(name), "n": metrics["n"]} | {
        **{metric: metrics[metric] for metric in METRICS},
        "intervals": intervals,
    }


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all rows in their order. A new row takes the place of an old one of the same kind and name.

    Examples:
        >>> old = [{"kind": "views", "name": "none", "n": 1}, {"kind": "views", "name": "flip", "n": 1}]
        >>> [each["n"] for each in merged(old, [{"kind": "views", "name": "none", "n": 2}])]
        [2, 1]
    """
    rows = {(each["kind"], each["name"]): each for each in old} | {(each["kind"], each["name"]): each for each in new}
    return list(rows.values())
