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


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give a hidden folder inside `parent`, so that what is made in it is moved to its place by a rename on one file system.

    It goes in any case, and with it what was made to hold it and is still empty.

    Raises:
        OSError: `parent` cannot be made or written.
    """
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".cifar_keras-") as scratch:
            yield Path(scratch)
    finally:
        with contextlib.suppress(OSError):  # not empty, as it should be
            for folder in made:
                folder.rmdir()


def check_unused(workdir: str) -> Path:
    """Return the path of a workdir that a run may fill; nothing is made yet.

    Raises:
        UserError: it has something in it, is not a folder, or cannot be made.
    """
    path = expand("workdir", workdir)
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--workdir cannot be made or written: {nearest} is no writable folder. Received: {workdir}")
    if path.exists() and (not os.access(path, os.R_OK) or any(path.iterdir())):
        raise UserError(f"--workdir has to be new or empty, so that no earlier run is lost. Received: {workdir}")
    return path


def make_workdir(path: Path) -> None:
    """Make the folder of a run.

    Raises:
        UserError: the operating system refuses, or another run has begun to fill it.
    """
    check_unused(str(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir cannot be made: {error.strerror}. Received: {path}") from error
