"""What a model gives beside its own test split: with test-time augmentation, on corrupted images, on other test sets.

Every row is measured at the temperature that the model serves with.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import CORRUPTION_SUITE, EvaluationConfig, Views, other_sets_of
from cifar_keras.data.types import Dataset, LabelledImages
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.evaluation.test_sets import OtherSet, find_other_sets, read_other_set
from cifar_keras.evaluation.uncertainty import mean_interval
from cifar_keras.exporting.saved_model import serve_all

FIGURES = ("accuracy", "loss", "brier", "calibration_error")
# Eight corruptions at five severities: 40 forward passes of each image.
CORRUPTED_IMAGES = 1000

# uint8 images [n, height, width, 3], and what the progress bar is called -> logits over the temperature, float32 [n, classes]
Predict = Callable[[NDArray[np.uint8], str], NDArray[np.float32]]
Kind = Literal["views", "corruption", "test set"]


class Robustness(NamedTuple):
    """What was measured beside the test split."""

    rows: list[dict[str, Any]]  # of `row`
    means: dict[str, Any]  # of `mean_accuracy`, by the name of a suite


def predict_at(model: tf.Module, temperature: float, batch_size: int) -> Predict:
    """Return what runs images through a loaded SavedModel, and divides its logits by the temperature that it serves with."""
    return lambda images, title: serve_all(model, images, batch_size, title).logits / np.float32(temperature)


def measure_robustness(
    predict: Predict,
    plain: NDArray[np.float32],
    dataset: Dataset,
    settings: EvaluationConfig,
    *,
    data_dir: str,
    seed: int,
) -> Robustness:
    """Measure what the settings ask for beside the run's own splits.

    Args:
        predict: the model.
        plain: what `predict` gives of the test images.
        dataset: of the run.
        settings: which views and which other test sets.
        data_dir: TFDS folder with the other sets.
        seed: of the noise, of the choice of images and of the resamples.

    Raises:
        UserError: a set is not prepared.
    """
    test, class_names = dataset.test, dataset.class_names
    rows: list[dict[str, Any]] = []
    means: dict[str, Any] = {}
    names = other_sets_of(settings)
    find_other_sets(names, data_dir)  # before anything takes long
    if settings.test_time_augmentation is not Views.NONE:
        rows += with_views(predict, test, plain, settings.test_time_augmentation, class_names, seed=seed)
    if CORRUPTION_SUITE in settings.test_sets.split(","):
        measured, means[CORRUPTION_SUITE] = with_corruptions(predict, test, plain, class_names, seed=seed)
        rows += measured
    of_sets, mean = on_other_sets(predict, names, data_dir, dataset, seed=seed)
    return Robustness(rows + of_sets, means | mean)


def on_other_sets(
    predict: Predict, names: Sequence[str], data_dir: str, dataset: Dataset, *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure other test sets; return their rows, and the mean over `cifar10_corrupted` where all of it was asked for."""
    rows, right_of_corrupted = [], []
    for name in find_other_sets(names, data_dir):
        for other in read_other_set(name, data_dir, dataset.validation):
            measured, right = on_other_set(predict, other, dataset.class_names, seed=seed)
            rows.append(measured)
            if name.startswith("cifar10_corrupted/"):  # the test split each, and TFDS orders all of them alike
                right_of_corrupted.append(right)
    if "cifar10_corrupted" not in names:
        return rows, {}
    return rows, {"cifar10_corrupted": mean_accuracy(right_of_corrupted, seed=seed)}


def with_views(
    predict: Predict,
    test: LabelledImages,
    plain: NDArray[np.float32],
    views: Views,
    class_names: Sequence[str],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Measure the mean logits of several views of each test image, and return its row behind that of the images as they are.

    Args:
        predict: the model.
        test: images and labels.
        plain: what `predict` gives of the images as they are.
        views: which views.
        class_names: of the model.
        seed: of the resamples.
    """
    (share, _), *others = views_of(test.images, views)
    logits = share * plain + sum(share * predict(images, f"test, {views}") for share, images in others)
    return [
        row("views", name, of_views, test.labels, class_names, seed=seed)
        for name, of_views in ((Views.NONE, plain), (views, logits.astype(np.float32)))
    ]


def views_of(images: NDArray[np.uint8], views: Views) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield each view of images, uint8 `[n, height, width, 3]`, behind its share in the mean; first the images as they are.

    The pixel that a shift (up and left, or down and right) leaves open is the reflection of the image; both shifts together
    count as much as the image that stays, as in airbench (arXiv:2404.00498).
    """
    if views is Views.NONE:
        yield 1.0, images
        return
    shifts = [(1.0, images)]
    if views is Views.FLIP_AND_SHIFTS:
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        shifts = [(0.5, images), (0.25, padded[:, :-2, :-2]), (0.25, padded[:, 2:, 2:])]
    for share, shifted in shifts:
        yield share / 2, shifted
        yield share / 2, np.ascontiguousarray(shifted[:, :, ::-1])


def with_corruptions(
    predict: Predict, test: LabelledImages, plain: NDArray[np.float32], class_names: Sequence[str], *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure corrupted test images, at most `CORRUPTED_IMAGES` of them, drawn by the seed.

    Args:
        predict: the model.
        test: images and labels.
        plain: what `predict` gives of the images as they are.
        class_names: of the model.
        seed: of the choice of images, of the noise and of the resamples.

    Returns:
        A row for each corruption and severity, and one for the same images as they are; and `mean_accuracy` of the corrupted.
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
    return rows, mean_accuracy(right, seed=seed)


def mean_accuracy(right: Sequence[NDArray[np.bool_]], *, seed: int) -> dict[str, Any]:
    """Return the mean accuracy on several sets of the same images, as `sets`, `n`, `accuracy` and its `interval`.

    An image is resampled with all that was made of it: its corruptions are not independent of each other.

    Args:
        right: for each set bool `[n]`, whether the model is right about each image; the images in the same order in all.
        seed: of the resamples.
    """
    of_image = np.mean(right, axis=0)
    interval = mean_interval(of_image, seed=seed, highest=1.0)
    return {"sets": len(right), "n": len(of_image), "accuracy": float(of_image.mean()), "interval": interval}


def on_other_set(
    predict: Predict, other: OtherSet, class_names: Sequence[str], *, seed: int
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Measure another test set, and return its row and of which images the model is right, bool `[n]`.

    Where people's soft labels are known: `human_cross_entropy`, the mean of `-sum over classes of share * ln(probability)` in nats
    (Peterson et al., arXiv:1908.07086), and `human_entropy`, the least that it can be.
    """
    logits = predict(other.split.images, other.name)
    values = row("test set", other.name, logits, other.split.labels, class_names, seed=seed)
    if other.soft_labels is not None:
        smallest = np.finfo(np.float64).tiny
        surprise = -(other.soft_labels * np.log(np.maximum(softmax(logits), smallest))).sum(axis=1)
        entropy = -(other.soft_labels * np.log(np.maximum(other.soft_labels, smallest))).sum(axis=1)
        values |= {"human_cross_entropy": float(surprise.mean()), "human_entropy": float(entropy.mean())}
        values["intervals"]["human_cross_entropy"] = mean_interval(surprise, seed=seed)
    return values, logits.argmax(axis=1) == other.split.labels


def row(
    kind: Kind,
    name: str,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return what is kept of a measurement: `kind`, `name`, `n`, `FIGURES` and their `intervals`."""
    metrics = classification_metrics(logits, labels, class_names, seed=seed)
    intervals = {figure: metrics["intervals"][figure] for figure in FIGURES}
    return {"kind": kind, "name": str(name), "n": metrics["n"]} | {
        **{figure: metrics[figure] for figure in FIGURES},
        "intervals": intervals,
    }


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in their order, the new ones in place of old ones of the same kind and name."""
    rows = {(each["kind"], each["name"]): each for each in old} | {(each["kind"], each["name"]): each for each in new}
    return list(rows.values())
