"""Lay out predictions of files: the most probable classes, the rows of a table, and the metrics where the classes are known."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cifar_keras.data.pictures.finding import PictureFile
from cifar_keras.errors import UserError
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.evaluation.uncertainty import fraction_interval
from cifar_keras.files import paths, rows
from cifar_keras.reporting.tables import metrics_table

# The label of a file whose most probable class is less probable than the user wants.
UNKNOWN = "unknown"


def best_classes(
    probabilities: NDArray[np.float32], class_names: Sequence[str], top: int, min_probability: float
) -> list[tuple[str, np.float32]]:
    """Return the `top` most probable classes with their probabilities, the most probable first.

    If its probability is below `min_probability`, the first is named `UNKNOWN`.

    Examples:
        >>> row = np.array([0.25, 0.75], np.float32)
        >>> [(name, float(probability)) for name, probability in best_classes(row, ["cat", "dog"], 2, 0.8)]
        [('unknown', 0.75), ('cat', 0.25)]
    """
    # Of equal probabilities the first class comes first, as in the metrics.
    best = sorted(zip(class_names, probabilities, strict=True), key=lambda pair: -pair[1])[:top]
    return [(UNKNOWN, best[0][1]), *best[1:]] if best[0][1] < min_probability else best


def columns_of(top: int, *, labelled: bool) -> rows.Columns:
    """Return the columns of a table of predictions, with their types.

    These are `filename`; `label` and `prob`, or `label_0`, `prob_0`, `label_1` and so on for several classes; `true_label` if the
    classes are known; and `error`.
    """
    pairs = [("label", "prob")] if top == 1 else [(f"label_{place}", f"prob_{place}") for place in range(top)]
    of_classes = {name: kind for pair in pairs for name, kind in zip(pair, (str, float), strict=True)}
    return {"filename": str, **of_classes, **({"true_label": str} if labelled else {}), "error": str}


def table_row(
    file: PictureFile, best: Sequence[tuple[str, np.float32]] | UserError, columns: rows.Columns
) -> dict[str, rows.Value]:
    """Return the row of a file: its most probable classes, or the error about it."""
    row: dict[str, rows.Value] = {"filename": rows.name_as_text(file.path)}
    if "true_label" in columns:
        row["true_label"] = file.class_folder
    if isinstance(best, UserError):
        return row | {"error": str(best).removesuffix(f". Received: {paths.shown(file.path)}")}
    names = [name for name in columns if name.startswith(("label", "prob"))]
    # The shortest number that is the same float32.
    values = [value for name, probability in best for value in (name, float(str(probability)))]
    return row | dict(zip(names, values, strict=True))


def metrics_text(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str], title: str
) -> str:
    """Return the table of the metrics of files whose classes are known, as lines without a newline at the end.

    Args:
        probabilities: float32 `[n, classes]`, as served; so the loss is that of the served probabilities.
        labels: int64 `[n]`.
        class_names: of the model.
        title: what was measured.
    """
    smallest = np.finfo(np.float32).tiny
    return metrics_table(
        classification_metrics(np.log(np.maximum(probabilities, smallest)), labels, class_names), title
    )


def unknown_text(probabilities: NDArray[np.float32], labels: NDArray[np.int64], min_probability: float) -> str:
    """Return a line that says how many files have a label, and how many of those labels are right.

    Args:
        probabilities: float32 `[n, classes]`, as served.
        labels: int64 `[n]`.
        min_probability: files below it are unknown.
    """
    known = probabilities.max(axis=1) >= min_probability
    right, count = int((probabilities.argmax(axis=1) == labels)[known].sum()), int(known.sum())
    text = f"{UNKNOWN}: {len(known) - count:,} of {len(known):,} files"
    if not count:
        return text
    low, high = fraction_interval(right, count)
    return f"{text}; of the others {right / count:.2%} are right ({low:.2%} to {high:.2%})"


def labels_of(folders: Sequence[str], class_names: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each class, int64 `[n]`, from the names of folders, each of which is a class of the model."""
    index: Mapping[str, int] = {name: place for place, name in enumerate(class_names)}
    return np.array([index[folder] for folder in folders], np.int64)
