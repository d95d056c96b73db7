"""Paths that a user names, and the names of the files in a run's workdir. Standard library only."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cifar_keras.errors import UserError

CONFIG = "config.json"
DATASET = "dataset.json"
SKIPPED_IMAGES = "skipped_images.csv"
ENVIRONMENT = "environment.json"
CLASS_WEIGHTS = "class_weights.json"
EXCLUDED = "excluded_images.csv"
RESULT = "result.json"
MODEL = "model.keras"
SAVED_MODEL = "saved_model"
METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.npz"
ROBUSTNESS = "further_evaluation.json"
EXPORTS = "exports/exports.json"
SUSPECT_LABELS = "suspect_labels.csv"
EXPLANATION = "explanation.json"
REPORT = "report.html"
MODEL_CARD = "model_card.md"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


# TensorFlow reads the path of a model's variables as a pattern: `runs/[a]` would be `runs/a`, and `*` and `?` match other names too.
PATTERN = "*?[\\"


def has_home() -> bool:
    """Return whether the user has a home folder, by HOME or by the system's list of users."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def is_folder(path: Path) -> bool:
    """Return whether there is a folder. Unlike `Path.is_dir`, no error is raised if the name is too long or a folder above is locked."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Return whether there is a file that is no pipe or device. Like `is_folder`, no error is raised."""
    try:
        return path.is_file()
    except OSError:
        return False


def expand(flag: str, value: str) -> Path:
    """Return the path that a flag names, with `~` expanded.

    Raises:
        UserError: no file can have this path: there is no home folder for its `~`, its bytes are no text, or it is too long.
    """
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"--{flag} is no path that can be used: there is no such home folder, so it has to be without ~, or HOME to be set. "
            f"Received: {value}"
        ) from error
    try:
        str(path).encode()
        path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"--{flag} is no path that can be used ({error}). Received: {value}") from error
    return path


def expand_model(flag: str, value: str) -> Path:
    """Return the path of a folder that TensorFlow writes a model to, or reads one from.

    Raises:
        UserError: as in `expand`, or TensorFlow would read the path as a pattern.

    Examples:
        >>> expand_model("workdir", "runs/[a]")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        cifar_keras.errors.UserError: --workdir has to name a folder without ...
    """
    path = expand(flag, value)
    if found := [character for character in PATTERN if character in str(path)]:
        raise UserError(
            f"--{flag} has to name a folder without {' '.join(PATTERN)} in its path, which TensorFlow would take for a pattern "
            f"({' '.join(found)}). Received: {value}"
        )
    return path


def shown(path: Path | str) -> str:
    r"""Return a path as text on one line. Bytes that are no text and characters that cannot be printed are escaped.

    Examples:
        >>> print(shown("two\nlines.jpg"))
        two\nlines.jpg
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def check_has_model(workdir: Path) -> None:
    """Check that a workdir has `model.keras`, the classifier that Keras can read.

    Raises:
        UserError: the file is not there.
    """
    if not (workdir / MODEL).is_file():
        raise UserError(f"the run has no {MODEL} any more. Received: {workdir}")


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a hidden folder inside `parent`, on the same file system, so that a rename moves what is made in it to its place.

    The folder is removed in any case. Folders that were created to hold it are removed too if they are still empty.

    Raises:
        OSError: `parent` cannot be created or written.
    """
    with kept_if_filled(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".cifar_keras-") as scratch:
            yield Path(scratch)


@contextlib.contextmanager
def kept_if_filled(folder: Path) -> Iterator[None]:
    """Remove a folder and its parents after the block, if they did not exist before it and are empty."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        # A folder that is not empty raises an OSError, and stays.
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()
