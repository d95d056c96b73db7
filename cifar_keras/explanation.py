"""What lies behind a run's predictions: near training images, a map of the features, and labels that look wrong."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from cifar_keras.data.cifar10.layout import Dataset, LabelledImages
from cifar_keras.data.splits import Splits
from cifar_keras.errors import UserError
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.galleries import most_confident_errors
from cifar_keras.evaluation.neighbours import (
    PROJECTED_DIMENSIONS,
    PROJECTED_IMAGES,
    nearest,
    principal_components,
    write_projector,
)
from cifar_keras.evaluation.suspects import FOLDS, out_of_sample_probabilities, suspect_labels
from cifar_keras.files import paths, writing
from cifar_keras.files.finished_run import FinishedRun
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.reporting import figures
from cifar_keras.reporting.report import image_uri
from cifar_keras.run import make_classifier
from cifar_keras.training.features import predict_all

NEIGHBOURS = 6  # training images beside each error
ERRORS = 12
SUSPECTS = 48  # of which the report shows the images; the CSV file has all

Features = Callable[[NDArray[np.uint8], str], NDArray[np.float32]]  # of images, with the name of the progress bar


def explain_predictions(run: FinishedRun, splits: Splits, train_images: int) -> dict[str, Any]:
    """Compare the test images with training images: neighbours of the surest errors, a map, and TensorBoard's projector.

    Args:
        run: the run.
        splits: its images.
        train_images: how many of the train split are looked at; 0 is all.

    Returns:
        What `explanation.json` says, but for the labels.
    """
    features = features_of(
        keras.models.load_model(run.path / paths.MODEL, compile=False), run.config.data.global_batch_size
    )
    test, chosen = splits.test, choose(len(splits.train.labels), train_images, run.config.seed)
    train = LabelledImages(splits.train.images[chosen], splits.train.labels[chosen])
    of_test, of_train = features(test.images, "test"), features(train.images, "train")
    probabilities = softmax(run.logits, run.result["calibration"]["temperature"])
    draw_map(run, of_test, test, splits.class_names)
    errors = most_confident_errors(probabilities, test.labels, ERRORS)
    near = neighbours_of(of_test[errors], of_train, train, splits.class_names) if len(errors) else []
    return {
        "train_images": len(train.labels),
        "neighbours": [
            {
                "image": image_uri(test.images[error]),
                "label": splits.class_names[test.labels[error]],
                "predicted": splits.class_names[probabilities[error].argmax()],
                "confidence": float(probabilities[error].max()),
                "nearest": nearest_images,
            }
            for error, nearest_images in zip(errors, near, strict=True)
        ],
    }


def neighbours_of(
    features: NDArray[np.float32], among: NDArray[np.float32], train: LabelledImages, class_names: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Return the training images whose features `[m, features]` are most like those of each image, `[n, features]`."""
    positions, cosines = nearest(features, among, NEIGHBOURS)
    return [
        [
            {
                "image": image_uri(train.images[position]),
                "label": class_names[train.labels[position]],
                "cosine": float(cosine),
            }
            for position, cosine in zip(*of_image, strict=True)
        ]
        for of_image in zip(positions, cosines, strict=True)
    ]


def draw_map(run: FinishedRun, features: NDArray[np.float32], test: LabelledImages, class_names: Sequence[str]) -> None:
    """Draw the test features into the workdir, and write some of them for TensorBoard's projector."""
    components, shares = principal_components(features, PROJECTED_DIMENSIONS, seed=run.config.seed)
    picture = figures.feature_map_picture(components[:, :2], test.labels, class_names, shares[:2])
    writing.write_whole(run.path / "feature_map.png", picture)
    shown = choose(len(features), PROJECTED_IMAGES, run.config.seed)
    columns = [
        (heading, [class_names[index] for index in indices])
        for heading, indices in (("label", test.labels[shown]), ("predicted", run.logits[shown].argmax(axis=1)))
    ]
    # Where the events are: TensorBoard looks for a projector in folders that have some.
    write_projector(run.path / "tensorboard" / "train", components[shown], test.images[shown], columns)


def explain_labels(run: FinishedRun, dataset: Dataset, train_images: int) -> dict[str, Any] | None:
    """Find suspect labels of the train set, and write all of them into the workdir.

    The run's own network has learned from the labels, so they are judged by features of the network that it began with.

    Args:
        run: the run.
        dataset: its images.
        train_images: how many of the train set are looked at; 0 is all.

    Returns:
        What `explanation.json` says of them; None where the run did not begin with ImageNet's weights.

    Raises:
        UserError: too few images of a class are looked at.
    """
    if run.config.model.weights != "imagenet":
        print("no suspect labels: the run began with weights that know nothing, or may know the labels")
        return None
    chosen, class_names = choose(len(dataset.train.labels), train_images, run.config.seed), dataset.class_names
    images, labels = dataset.train.images[chosen], dataset.train.labels[chosen]
    if np.bincount(labels, minlength=len(class_names)).min() < FOLDS:
        raise UserError(f"--train_images has to leave {FOLDS} images of each class. Received: {train_images}")
    features = features_of(
        make_classifier(run.config, len(class_names), fetch=False), run.config.data.global_batch_size
    )
    probabilities = out_of_sample_probabilities(features(images, "labels"), labels, seed=run.config.seed)
    suspects, likely = suspect_labels(probabilities, labels)
    rows = [
        {
            "index": int(chosen[suspect]),
            "label": class_names[labels[suspect]],
            "likely": class_names[instead],
            "probability_of_label": float(probabilities[suspect, labels[suspect]]),
            "probability_of_likely": float(probabilities[suspect, instead]),
        }
        for suspect, instead in zip(suspects, likely, strict=True)
    ]
    write_rows(rows, run.path / paths.SUSPECT_LABELS)
    return {
        "images": len(labels),
        "suspects": len(rows),
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "shown": [
            row | {"image": image_uri(images[suspect])} for row, suspect in zip(rows[:SUSPECTS], suspects, strict=False)
        ],
    }


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write suspect labels as CSV. `index` is an image's place in the official order of the train set."""
    text = io.StringIO(newline="")
    columns = ["index", "label", "likely", "probability_of_label", "probability_of_likely"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    writing.write_whole(path, text.getvalue().encode())


def features_of(classifier: keras.Model, batch_size: int) -> Features:
    """Return what computes the pooled features of a classifier's backbone, float32 `[n, features]`."""
    twin = fused_twin(classifier.get_layer("backbone"), compute_dtype="float32", folded=True)
    model = assemble(classifier, twin, last="backbone")
    return lambda images, title: predict_all(model, images, batch_size, title)


def choose(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return which images are looked at, rising: `count` of them, drawn by the seed; all if it is 0 or too many."""
    if count == 0 or count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
