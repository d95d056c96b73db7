"""Paths that a person names, and the names of what lies in a run's workdir. Standard library only."""

import contextlib
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
FURTHER = "further_evaluation.json"
EXPORTS = "exports/exports.json"
SUSPECT_LABELS = "suspect_labels.csv"
EXPLANATION = "explanation.json"
REPORT = "report.html"
MODEL_CARD = "model_card.md"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


def expand(flag: str, value: str) -> Path:
    """Return the path that a flag names, with `~` expanded.

    Raises:
        UserError: no file can have this path: its home folder is nobody's, or it is too long.
    """
    try:
        path = Path(value).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--{flag} is no path that can be used ({error}). Received: {value}") from error
    return path


def check_has_model(workdir: Path) -> None:
    """Check that a workdir has the classifier that Keras can read.

    Raises:
        UserError: it does not.
    """
    if not (workdir / MODEL).is_file():
        raise UserError(f"the run has no {MODEL} any more. Received: {workdir}")


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give a hidden folder inside `parent`, so that what is made in it is moved to its place by a rename on one file system.

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
