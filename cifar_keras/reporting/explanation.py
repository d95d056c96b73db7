"""Write what `explain` found: entries of `explanation.json`, which the report shows, a map, and a table of suspect labels."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_keras.data.types import LabelledImages
from cifar_keras.evaluation.explanation import Suspects, choose
from cifar_keras.evaluation.neighbours import nearest, principal_components
from cifar_keras.files import paths, writing
from cifar_keras.reporting import figures
from cifar_keras.reporting.projector import PROJECTED_DIMENSIONS, PROJECTED_IMAGES, write_projector
from cifar_keras.reporting.report import image_uri

NEIGHBOURS = 6  # training images shown next to each error
SUSPECTS = 48  # suspects whose images the report shows; the CSV file has all suspects


def neighbours_of(
    features: NDArray[np.float32], among: NDArray[np.float32], train: LabelledImages, class_names: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Return for each image the training images with the most similar features.

    Args:
        features: float32 `[n, features]`, of the images.
        among: float32 `[m, features]`, of the training images.
        train: the training images and their labels.
        class_names: the class names of the model.
    """
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


def write_map(
    features: NDArray[np.float32],
    test: LabelledImages,
    predicted: NDArray[np.int64],
    class_names: Sequence[str],
    path: Path,
    *,
    seed: int,
) -> None:
    """Write a map of the test features into a workdir, and some of the features for TensorBoard's projector.

    Args:
        features: float32 `[n, features]`, of the test images.
        test: images and labels.
        predicted: int64 `[n]`, the class that the model predicts for each image.
        class_names: the class names of the model.
        path: the workdir.
        seed: seed of the projection, and of the choice of images.
    """
    components, fractions = principal_components(features, PROJECTED_DIMENSIONS, seed=seed)
    picture = figures.feature_map_picture(components[:, :2], test.labels, class_names, fractions[:2])
    writing.write_whole(path / "feature_map.png", picture)
    shown = choose(len(features), PROJECTED_IMAGES, seed)
    columns = [
        (heading, [class_names[index] for index in indices[shown]])
        for heading, indices in (("label", test.labels), ("predicted", predicted))
    ]
    # In the folder of the events, because TensorBoard looks for a projector only in folders that have events.
    write_projector(path / "tensorboard" / "train", components[shown], test.images[shown], columns)


def write_suspects(
    found: Suspects,
    split: LabelledImages,
    names: Sequence[str],
    places: NDArray[np.int64],
    *,
    class_names: Sequence[str],
    path: Path,
) -> dict[str, Any]:
    """Write all suspect labels into a workdir, and return what `explanation.json` says about them.

    Args:
        found: the suspects.
        split: the images that were looked at.
        names: of these images.
        places: int64 `[m]`, the places of these images in the published order of the train set.
        class_names: the class names of the model.
        path: the workdir.
    """
    (images, labels), probabilities = split, found.probabilities
    rows = [
        {
            "index": int(places[suspect]),
            "name": names[suspect],
            "label": class_names[labels[suspect]],
            "likely": class_names[instead],
            "probability_of_label": float(probabilities[suspect, labels[suspect]]),
            "probability_of_likely": float(probabilities[suspect, instead]),
        }
        for suspect, instead in zip(found.positions, found.likely, strict=True)
    ]
    write_rows(rows, path / paths.SUSPECT_LABELS)
    return {
        "images": len(labels),
        "suspects": len(rows),
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "shown": [
            row | {"image": image_uri(images[suspect])}
            for row, suspect in zip(rows[:SUSPECTS], found.positions, strict=False)
        ],
    }


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write suspect labels as CSV, which `--exclude` reads. `index` is an image's place in the published order of the train set."""
    text = io.StringIO(newline="")
    columns = ["index", "name", "label", "likely", "probability_of_label", "probability_of_likely"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    writing.write_whole(path, text.getvalue().encode())
