"""Checkpoints of a run on disk. Each is a folder, there whole or not at all; hashes tell a damaged one."""

import contextlib
import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.errors import UserError, reason_of
from cifar_keras.files import writing

ARRAYS, VALUES, MANIFEST = "arrays.npz", "values.json", "manifest.json"


class Checkpoint(NamedTuple):
    """A run, or a part of it, at one moment: plain values and arrays."""

    values: dict[str, Any]  # plain values of JSON
    arrays: dict[str, NDArray[Any]]


class Checkpoints:
    """The newest checkpoints of a run, numbered in the order in which they were saved.

    Args:
        folder: where they lie; made with the first of them.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and only then remove the oldest.

        Raises:
            OSError: the folder cannot be written, or the disk is full. The checkpoints before are as they were.
        """
        # Not its parents: a workdir that was removed is not made again.
        self._folder.mkdir(exist_ok=True)
        earlier = self._paths()
        number = 1 + (int(earlier[-1].name) if earlier else 0)
        beside = self._folder / f".{number:06d}.part"
        # Left by a process that was killed while it saved.
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            with (beside / ARRAYS).open("xb") as file:
                np.savez(file, allow_pickle=False, **checkpoint.arrays)
                file.flush()
                writing.flush(file.fileno())
            writing.write_json(beside / VALUES, checkpoint.values)
            writing.write_json(beside / MANIFEST, {name: _digest(beside / name) for name in (ARRAYS, VALUES)})
            beside.rename(self._folder / f"{number:06d}")
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        writing.sync(self._folder)
        for path in earlier[: max(0, len(earlier) + 1 - self._keep)]:
            shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """Read the newest whole checkpoint; None where there is none at all. A damaged one is named on stderr and passed over.

        Raises:
            UserError: there are checkpoints and every one of them is damaged.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, UserError) as error:
                print(f"warning: {path} is damaged and not used: {reason_of(error)}", file=sys.stderr)
        if paths:
            raise UserError(f"--resume: every checkpoint of the run is damaged. Received: {self._folder}")
        return None

    def remove(self) -> None:
        """Remove all of them, when the run is whole."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(path for path in self._folder.iterdir() if path.name.isdecimal())
        return []


def _read(path: Path) -> Checkpoint:
    manifest = writing.read_json(path / MANIFEST)
    for name in (ARRAYS, VALUES):
        if _digest(path / name) != manifest[name]:
            raise ValueError(f"{name} is not what was written")
    with np.load(path / ARRAYS, allow_pickle=False) as arrays:
        return Checkpoint(writing.read_json(path / VALUES), dict(arrays))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_variables(
    group: str, variables: Mapping[str, keras.Variable], strategy: tf.distribute.Strategy
) -> dict[str, NDArray[Any]]:
    """Return the values of variables, each under `GROUP/NAME/COPY`; of one whose copies on the devices differ, every copy."""
    return {
        f"{group}/{name}/{copy}": np.asarray(value)
        for name, variable in variables.items()
        for copy, value in enumerate(_copies(variable, strategy))
    }


def write_variables(
    group: str,
    variables: Mapping[str, keras.Variable],
    strategy: tf.distribute.Strategy,
    arrays: Mapping[str, NDArray[Any]],
    *,
    all_of_them: bool = True,
) -> list[str]:
    """Set variables to the values that `read_variables` returned, and return the names of those that had none.

    Args:
        group: of the arrays.
        variables: by their names.
        strategy: of the run.
        arrays: of the checkpoint.
        all_of_them: whether each has to have one, and each array a variable.

    Raises:
        ValueError: they are other variables.
    """
    kept = {name.removeprefix(f"{group}/").rpartition("/")[0] for name in arrays if name.startswith(f"{group}/")}
    if all_of_them and kept != variables.keys():
        raise ValueError(f"the checkpoint has other variables. Received: {group}, {len(variables)} variables")
    for name in variables.keys() & kept:
        copies = _copies(variables[name], strategy)
        if len(copies) == 1:
            # This sets the copies of all devices.
            variables[name].assign(arrays[f"{group}/{name}/0"])
        else:
            for copy, value in enumerate(copies):
                value.assign(arrays[f"{group}/{name}/{copy}"])
    return [name for name in variables if name not in kept]


def numbered(variables: Sequence[keras.Variable]) -> dict[str, keras.Variable]:
    """Name variables by their places, where the list is the same in every process of a run."""
    return {str(number): variable for number, variable in enumerate(variables)}


def named(
    optimizer: keras.optimizers.Optimizer, classifier_variables: Sequence[keras.Variable]
) -> dict[str, keras.Variable]:
    """Name the variables of an optimizer by what they are about, so that another one that has some of them can be given theirs.

    A moment is named by the place of its weight in the classifier: Keras numbers some weights' names through the process, which
    another process may begin elsewhere.
    """
    places = {variable.path.replace("/", "_"): str(number) for number, variable in enumerate(classifier_variables)}
    names: dict[str, keras.Variable] = {}
    for variable in optimizer.variables:
        weight, _, moment = variable.name.rpartition("_")
        name = f"{places[weight]}_{moment}" if weight in places else variable.name
        # An optimizer that scales the loss has steps of its own beside those of the one in it.
        names[f"inner_{name}" if name in names else name] = variable
    assert len(names) == len(optimizer.variables)
    return names


def _copies(variable: keras.Variable, strategy: tf.distribute.Strategy) -> Sequence[tf.Variable]:
    if variable.synchronization != "on_read":
        return [variable]
    # A metric's sum is kept by each device for itself; their sum, shared out anew, would round differently.
    copies: Sequence[tf.Variable] = strategy.experimental_local_results(variable.value)
    return copies
