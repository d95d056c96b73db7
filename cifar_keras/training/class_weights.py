"""The weights of the classes in the training loss: none, by how often they occur, or from a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from cifar_keras.config import AUTO_WEIGHTS, NO_WEIGHTS
from cifar_keras.errors import UserError
from cifar_keras.files import paths, writing

# float32 holds the loss of such a weight, and its gradient: a larger one is a mistake.
LARGEST = 1_000_000
NAMED_CLASSES = 5  # at most, in a message
LONGEST = 40  # characters of a weight that is none, in a message


def check_class_weights(value: str) -> None:
    """Check what can be checked of `--class_weights` before the images are there: the file and the numbers in it.

    Raises:
        UserError: there is no such file, or it is no JSON object of weights.
    """
    if value not in (NO_WEIGHTS, AUTO_WEIGHTS):
        _read(value)


def make_class_weights(value: str, labels: NDArray[np.int64], class_names: Sequence[str]) -> NDArray[np.float32] | None:
    """Return the weight of each class, float32 `[classes]`; None if all classes count the same.

    `auto` weighs a class by n / (classes * n_c), where n_c of the n images are of class c (King and Zeng, 2001, as scikit-learn's
    "balanced"). So the mean over the images is 1, and every class has the same part of the loss. A class without an image is not
    counted and has the weight 0, which no label uses. The weights of a file are used as they are.

    Args:
        value: of `--class_weights`.
        labels: int64 `[n]`, of the train split.
        class_names: the name of each class.

    Raises:
        UserError: as in `check_class_weights`; or the file does not name each class, or weighs none of the images.

    Examples:
        >>> make_class_weights("auto", np.array([0, 0, 0, 0, 1]), ["rest", "eight"]).tolist()
        [0.625, 2.5]
    """
    if value == NO_WEIGHTS:
        return None
    if value == AUTO_WEIGHTS:
        found = np.unique(labels)
        weights = np.zeros(len(class_names), np.float32)
        weights[found] = compute_class_weight("balanced", classes=found, y=labels)
        return weights
    listed = _read(value)
    missing, unknown = (
        [name for name in ours if name not in theirs] for ours, theirs in _both_ways(class_names, listed)
    )
    if missing or unknown:
        reasons = [f"{what} {_some(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise UserError(
            f"--class_weights has to name each class of the images: {'; '.join(reasons)}. Received: {value}"
        )
    weights = np.array([listed[name] for name in class_names], np.float32)
    if not weights[labels].any():
        raise UserError(
            f"--class_weights has to give a class of the train split a weight above 0. Received: only 0 in {value}"
        )
    return weights


def begin_class_weights(
    value: str, labels: NDArray[np.int64], class_names: Sequence[str], workdir: Path
) -> NDArray[np.float32] | None:
    """Return the weights of `make_class_weights` for a run that begins or goes on in a workdir, and print their range.

    Raises:
        UserError: as in `make_class_weights` and `check_as_begun`.
    """
    weights = make_class_weights(value, labels, class_names)
    check_as_begun(weights, class_names, workdir)
    if weights is not None:
        print(class_weights_in_words(weights, class_names), flush=True)
    return weights


def check_as_begun(weights: NDArray[np.float32] | None, class_names: Sequence[str], workdir: Path) -> None:
    """Check that a resumed run has the weights that it began with, which its workdir keeps.

    Raises:
        UserError: the weights are others, because their file was changed.
    """
    file = workdir / paths.CLASS_WEIGHTS
    if weights is not None and file.is_file() and writing.read_json(file) != _named(weights, class_names):
        raise UserError(
            f"--class_weights has other weights than when the run began, which has them in {file.name}. Received: {workdir}"
        )


def keep_class_weights(weights: NDArray[np.float32] | None, class_names: Sequence[str], workdir: Path) -> None:
    """Write the weights of a run into its workdir, as `{"class name": weight}`. Without weights nothing is written."""
    if weights is not None:
        writing.write_json(workdir / paths.CLASS_WEIGHTS, _named(weights, class_names))


def class_weights_in_words(weights: NDArray[np.float32], class_names: Sequence[str]) -> str:
    """Return the smallest and the largest weight, each with its class.

    Examples:
        >>> class_weights_in_words(np.array([0.5, 10]), ["rest", "eight"])
        'class weights: from 0.5 (rest) to 10 (eight)'
    """
    low, high = int(weights.argmin()), int(weights.argmax())
    return f"class weights: from {weights[low]:.4g} ({class_names[low]}) to {weights[high]:.4g} ({class_names[high]})"


def _named(weights: NDArray[np.float32], class_names: Sequence[str]) -> dict[str, float]:
    return dict(zip(class_names, weights.tolist(), strict=True))


def _both_ways(class_names: Sequence[str], listed: dict[str, float]) -> list[tuple[Sequence[str], Sequence[str]]]:
    return [(class_names, list(listed)), (list(listed), class_names)]


def _read(value: str) -> dict[str, float]:
    path = paths.expand("class_weights", value)
    if not path.is_file():
        raise UserError(f"--class_weights has to be none, auto or the path of a JSON file. Received: {value}")
    content = writing.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'--class_weights has to hold an object {{"class name": weight, ...}}. Received: {path}')
    for name, weight in content.items():
        # A bool is an int.
        if type(weight) not in (int, float) or not 0 <= weight <= LARGEST:
            raise UserError(
                f"--class_weights has to give each class a number from 0 to {LARGEST:,}. "
                f"Received: {repr(weight)[:LONGEST]} for {name!r} in {path}"
            )
    return content


def _some(names: Sequence[str]) -> str:
    others = f" and {len(names) - NAMED_CLASSES:,} others" if len(names) > NAMED_CLASSES else ""
    return ", ".join(names[:NAMED_CLASSES]) + others
