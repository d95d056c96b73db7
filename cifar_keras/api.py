"""Train, load and use classifiers from Python: the names of the package itself. `train` and `Run.predict` import TensorFlow."""

import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_keras import config as config_lib
from cifar_keras import flags
from cifar_keras.errors import UserError
from cifar_keras.files import environment, paths
from cifar_keras.files.finished_run import read_finished_run


class Prediction(NamedTuple):
    """The class of a picture."""

    name: str  # the file, or the place of the pixels
    label: str  # the most probable class
    probability: float  # of the label
    probabilities: dict[str, float]  # of all classes


class Run:
    """A finished run: its metrics, and its model to classify pictures with. The model is loaded at the first prediction.

    Args:
        path: the workdir.

    Raises:
        UserError: the workdir holds no finished run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        finished = read_finished_run(paths.expand("path", os.fspath(path)))
        self.path: Path = finished.path
        self.config: config_lib.RunConfig = finished.config
        self.result: dict[str, Any] = finished.result
        self._model: Any = None

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.config.model.backbone}, accuracy {self.metrics['accuracy']:.2%} of {self.metrics['n']:,}>"

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the test split, with their intervals, as `result.json` has them."""
        return dict(self.result["test"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the model's outputs."""
        return tuple(self.metrics["per_class"])

    def predict(
        self, pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | NDArray[np.uint8]
    ) -> list[Prediction]:
        """Return the class of each picture, by the exported model.

        Args:
            pictures: files, or one file; or pixels, uint8 `[n, height, width, 3]`, RGB.

        Raises:
            UserError: a file is not a picture that can be read, or the pixels have another shape or dtype.
        """
        if isinstance(pictures, np.ndarray) and (
            pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3
        ):
            raise UserError(
                f"pictures have to be uint8 [n, height, width, 3]. Received: {pictures.dtype} {list(pictures.shape)}"
            )
        if not isinstance(pictures, str | os.PathLike) and len(pictures) == 0:
            return []
        environment.load_keras()
        from cifar_keras.exporting.classify import classify
        from cifar_keras.exporting.saved_model import load_saved_model, serve_all

        if self._model is None:
            self._model = load_saved_model(self.path)
        if isinstance(pictures, np.ndarray):
            rows = serve_all(self._model, pictures, self.config.data.global_batch_size, "pictures").probabilities
            return [self._prediction(f"[{number}]", row) for number, row in enumerate(rows)]
        files = [Path(pictures)] if isinstance(pictures, str | os.PathLike) else [Path(each) for each in pictures]
        return [self._prediction(str(file), _raised(found)) for file, found in classify(self._model, files)]

    def _prediction(self, name: str, row: NDArray[np.float32]) -> Prediction:
        probabilities = dict(zip(self.class_names, row.tolist(), strict=True))
        label = max(probabilities, key=lambda name: probabilities[name])
        return Prediction(name, label, probabilities[label], probabilities)

    @property
    def report(self) -> Path:
        """The page about the run, which any browser shows."""
        return self.path / paths.REPORT


def _raised(found: NDArray[np.float32] | UserError) -> NDArray[np.float32]:
    if isinstance(found, UserError):
        raise found
    return found


def load(path: str | os.PathLike[str]) -> Run:
    """Return a finished run.

    Args:
        path: its workdir.

    Raises:
        UserError: the workdir holds no finished run.
    """
    return Run(path)


def train(recipe: str | os.PathLike[str] = "", **settings: Any) -> Run:
    """Train, export and measure a classifier, and return the finished run.

    Args:
        recipe: a file with flags, such as `experiments/quickstart.flags`; "" is none.
        settings: any settings of `python -m cifar_keras.train --help` by the names of their flags, such as `dataset="folder:photos"` or
            `head_epochs=3`. They go before those of the recipe. Without `workdir` the run gets a new folder in `runs`.

    Raises:
        UserError: a setting, the data or the weights cannot be used, before anything is trained; or the loss diverges.
        InterruptedRunError: the run was asked to end.
    """
    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()}
    values = config_lib.to_values(
        flags.parse_config(["train", *([f"--flagfile={os.fspath(recipe)}"] if recipe else [])])
    )
    if "workdir" not in given and values["workdir"] == config_lib.RunConfig.workdir:
        given["workdir"] = str(_new_workdir())
    config = config_lib.from_values(values | given)
    config_lib.validate(config)
    environment.load_keras()
    from cifar_keras import run

    run.run(config)
    return Run(config.workdir)


class CallableModule(types.ModuleType):
    """The module of the command `train`, which can be called like the function `train`."""

    def __call__(self, recipe: str | os.PathLike[str] = "", **settings: Any) -> Run:
        """Train a classifier, as `train` does."""
        return train(recipe, **settings)


def _new_workdir() -> Path:
    """Return the first path `runs/run_NUMBER` that does not exist."""
    number = 1
    while (path := Path("runs") / f"run_{number}").exists():
        number += 1
    return path
