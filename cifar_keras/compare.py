"""`python -m cifar_keras.compare RUN RUN...`: runs beside one another, and whether they differ by more than chance."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_keras import artifacts, flags, paths
from cifar_keras.errors import UserError, reason_of


class Run(NamedTuple):
    """What a run left behind."""

    path: Path
    result: dict[str, Any]
    logits: NDArray[np.float32]  # [n, classes], of the test images
    labels: NDArray[np.int64]  # [n]
    records: list[dict[str, Any]]  # of metrics.jsonl


def main(argv: Sequence[str]) -> None:
    """Print both tables, and draw the curves where a file for them is named."""
    arguments = flags.parse_compare(argv)
    runs = [read_run(path) for path in arguments.runs]
    check_same_images(runs)
    from cifar_keras.reporting.pictures import comparison_picture
    from cifar_keras.reporting.tables import comparison_table, differences_table
    from cifar_keras.reporting.uncertainty import mcnemar

    names = [str(run.path) for run in runs]
    print(comparison_table(names, [run.result for run in runs]))
    right = [run.logits.argmax(axis=1) == run.labels for run in runs]
    pairs = [(first, second) for first in range(len(runs)) for second in range(first + 1, len(runs))]
    print()
    print(differences_table([(names[i], names[j], mcnemar(right[i], right[j])) for i, j in pairs]))
    if arguments.picture:
        batch_sizes = [run.result["config"]["global_batch_size"] for run in runs]
        picture = comparison_picture(names, [run.records for run in runs], batch_sizes)
        try:
            artifacts.write_whole(arguments.picture, picture)
        except OSError as error:
            raise UserError(f"--picture cannot be written: {error.strerror}. Received: {arguments.picture}") from error


def read_run(path: Path) -> Run:
    """Read what a run left in its workdir.

    Raises:
        UserError: something is missing, damaged, or of another version.
    """
    result = artifacts.read_json(path / paths.RESULT)
    try:
        float(result["test"]["intervals"]["accuracy"][1]), float(result["calibration"]["test"]["loss"])
        float(result["minutes"]["total"]), int(result["config"]["global_batch_size"])
        with np.load(path / paths.PREDICTIONS) as kept:
            logits, labels = kept["test_logits"], kept["test_labels"]
        records = artifacts.read_json_lines(path / paths.METRICS)
        float(records[-1]["validation_accuracy"]), int(records[-1]["step"])  # of the last epoch's end
    except OSError as error:
        raise UserError(f"the run cannot be compared: {reason_of(error)}. Received: {path}") from error
    except (KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the run cannot be compared, no run of this version left it: {type(error).__name__}, {error}. Received: {path}"
        ) from error
    return Run(path, result, logits, labels, records)


def check_same_images(runs: Sequence[Run]) -> None:
    """Check that all runs were tested on the same images.

    Raises:
        UserError: one was not.
    """
    for run in runs[1:]:
        if run.logits.shape != runs[0].logits.shape or not np.array_equal(run.labels, runs[0].labels):
            raise UserError(
                f"the runs were tested on other images, or tell other classes apart. Received: {runs[0].path} and {run.path}"
            )


if __name__ == "__main__":
    flags.run_command(main)
