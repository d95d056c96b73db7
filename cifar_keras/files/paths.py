"""Paths that a person names, and the names of what lies in a run's workdir. Standard library only."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cifar_keras.errors import UserError

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
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


# TensorFlow reads the path of a model's variables as a pattern: `runs/[a]` would be `runs/a`, and `*` and `?` fit other names too.
PATTERN = "*?[\\"


def has_home() -> bool:
    """Return whether the user has a home folder, by HOME or by the system's list of users."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


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
        UserError: as `expand`, or TensorFlow would take it for a pattern.
    """
    path = expand(flag, value)
    if found := [character for character in PATTERN if character in str(path)]:
        raise UserError(
            f"--{flag} has to name a folder without {' '.join(PATTERN)} in its path, which TensorFlow would take for a pattern "
            f"({' '.join(found)}). Received: {value}"
        )
    return path


def shown(path: Path | str) -> str:
    """Return a path as text on one line: bytes that are no text and characters that cannot be printed are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def check_has_model(workdir: Path) -> None:
    """Check that a workdir has the classifier that Keras can read.

    Raises:
        UserError: it does not.
    """
    if not (workdir / MODEL).is_file():
        raise UserError(f"the run has no {MODEL} any more. Received: {workdir}")


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a hidden folder inside `parent`, so that what is made in it is moved to its place by a rename on one file system.

    It goes in any case, and with it what was made to hold it and is still empty.

    Raises:
        OSError: `parent` cannot be made or written.
    """
    with kept_if_filled(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".cifar_keras-") as scratch:
            yield Path(scratch)


@contextlib.contextmanager
def kept_if_filled(folder: Path) -> Iterator[None]:
    """Remove a folder and those above it after the block, as far as they were not there before and are empty."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, as it should be
            for each in made:
                each.rmdir()
