"""Write and read the checkpoints of a run.

Each checkpoint is a folder, which is either complete or absent. SHA-256 hashes reveal a damaged one.
"""

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

    values: dict[str, Any]  # plain values that JSON can hold
    arrays: dict[str, NDArray[Any]]


class Checkpoints:
    """The newest checkpoints of a run, numbered in the order in which they were saved.

    Args:
        folder: the folder of the checkpoints. The first `save` creates it.
        keep: how many of the newest checkpoints are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and only then remove the oldest.

        Raises:
            OSError: the folder cannot be written, or the disk is full. The earlier checkpoints are unchanged.
        """
        # Parents are not created, so that a workdir that was removed meanwhile does not come back.
        self._folder.mkdir(exist_ok=True)
        earlier = self._paths()
        number = 1 + (int(earlier[-1].name) if earlier else 0)
        beside = self._folder / f".{number:06d}.part"
        # A process that was killed while it saved leaves such a folder.
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
        """Return the newest undamaged checkpoint, or None if there are no checkpoints.

        A damaged checkpoint is named on stderr and skipped.

        Raises:
            UserError: there are checkpoints, and every one of them is damaged.
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
        """Remove all checkpoints, once the run is complete."""
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
    """Return the values of variables, each under the key `GROUP/NAME/COPY`.

    A variable whose copies on the devices differ has a value for every copy. All others have one value, copy 0.
    """
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
    """Set variables to the values that `read_variables` returned, and return the names of variables without a value.

    Args:
        group: the group of the arrays.
        variables: the variables by their names.
        strategy: the strategy of the run.
        arrays: the arrays of the checkpoint.
        all_of_them: whether each variable must have a value, and each array of the group a variable.

    Raises:
        ValueError: `all_of_them` is set, and the checkpoint has other variables.
    """
    kept = {name.removeprefix(f"{group}/").rpartition("/")[0] for name in arrays if name.startswith(f"{group}/")}
    if all_of_them and kept != variables.keys():
        raise ValueError(f"the checkpoint has other variables. Received: {group}, {len(variables)} variables")
    for name in variables.keys() & kept:
        copies = _copies(variables[name], strategy)
        if len(copies) == 1:
            # Assigning sets the copies on all devices.
            variables[name].assign(arrays[f"{group}/{name}/0"])
        else:
            for copy, value in enumerate(copies):
                value.assign(arrays[f"{group}/{name}/{copy}"])
    return [name for name in variables if name not in kept]


def numbered(variables: Sequence[keras.Variable]) -> dict[str, keras.Variable]:
    """Return variables by their positions, written as text.

    This suits a list that is the same in every process of a run.
    """
    return {str(number): variable for number, variable in enumerate(variables)}


def named(
    optimizer: keras.optimizers.Optimizer, classifier_variables: Sequence[keras.Variable]
) -> dict[str, keras.Variable]:
    """Return the variables of an optimizer by names that another optimizer shares.

    So another optimizer that has some of the variables can take over their values. A moment is named by the position of its weight in
    the classifier. The weight's own name would not do: Keras numbers some names per process, and another process may count differently.
    """
    places = {variable.path.replace("/", "_"): str(number) for number, variable in enumerate(classifier_variables)}
    names: dict[str, keras.Variable] = {}
    for variable in optimizer.variables:
        weight, _, moment = variable.name.rpartition("_")
        name = f"{places[weight]}_{moment}" if weight in places else variable.name
        # An optimizer that scales the loss counts its own steps, and its inner optimizer counts them too.
        names[f"inner_{name}" if name in names else name] = variable
    assert len(names) == len(optimizer.variables)
    return names


def _copies(variable: keras.Variable, strategy: tf.distribute.Strategy) -> Sequence[tf.Variable]:
    if variable.synchronization != "on_read":
        return [variable]
    # Each device keeps its own part of a metric's sum. The total, distributed to the devices again, would round differently.
    copies: Sequence[tf.Variable] = strategy.experimental_local_results(variable.value)
    return copies
