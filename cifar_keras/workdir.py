"""The folder of a run, and the names of what lies in it. Standard library only."""

import os
from pathlib import Path

from cifar_keras.errors import UserError

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
RESULT = "result.json"
MODEL = "model.keras"
SAVED_MODEL = "saved_model"


def check_unused(workdir: str) -> Path:
    """Return the path of a folder that a run may fill; nothing is made yet.

    Raises:
        UserError: it has something in it, is not a folder, or cannot be made.
    """
    path = Path(workdir).expanduser()
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--workdir cannot be made or written: {nearest} is no writable folder. Received: {workdir}")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"--workdir has to be new or empty, so that no earlier run is lost. Received: {workdir}")
    return path


def make(path: Path) -> None:
    """Make the folder.

    Raises:
        UserError: the operating system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir cannot be made: {error.strerror}. Received: {path}") from error
