"""`python -m cifar_keras.predict --model=WORKDIR FILE_OR_FOLDER_OR_PATTERN...`: classify picture files."""

import errno
import itertools
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_keras import command, flags
from cifar_keras.data.pictures.finding import PictureFile, expand_patterns, picture_files
from cifar_keras.errors import UserError
from cifar_keras.files import environment, finished_run, paths, rows, writing
from cifar_keras.files.progress_bar import progress

if TYPE_CHECKING:  # it imports TensorFlow
    from cifar_keras.exporting.classify import Row


class Named(NamedTuple):
    """The files that a user named."""

    paths: list[Path]  # files and folders
    total: int  # files, those in the folders too
    class_folders: frozenset[str]  # names of the folders that they lie in, "" for a file that lies in none

    def files(self) -> Iterator[PictureFile]:
        """Yield each of them."""
        return picture_files(self.paths)


class Kept(NamedTuple):
    """What is kept of the files that were classified, as far as something is made of it at the end."""

    rows: list[NDArray[np.float32]]
    files: list[PictureFile]


def main(argv: Sequence[str]) -> None:
    """Print a line with the most probable classes of each file, or write them to the file that `--output` names.

    A file that is no picture is named on stderr, or is a row with its error, and the other files are classified. The exit status is
    then 2. With `--attribution`, also draw the pixels that the classes come from.
    """
    arguments = flags.parse_predict(argv)
    # All of this is before TensorFlow is imported, which takes seconds.
    named = find_files(arguments)
    min_probability = threshold_of(arguments)
    environment.load_keras()

    from cifar_keras.exporting.classify import classify
    from cifar_keras.exporting.saved_model import class_names_of, load_saved_model
    from cifar_keras.reporting import predictions

    model = load_saved_model(arguments.model)
    class_names = class_names_of(model)
    if min_probability and predictions.UNKNOWN in class_names:
        raise UserError(
            f"--min_probability and --precision call files {predictions.UNKNOWN}, which a class of this model is called too. "
            f"Received: {arguments.model}"
        )
    labelled = named.class_folders <= set(class_names)
    files, again = itertools.tee(named.files())
    classified = zip(files, (row for _, row in classify(model, (file.path for file in again))), strict=True)
    kept = Kept([], [])
    seen = _kept(classified, kept) if labelled or arguments.attribution else classified
    if arguments.output:
        failed = write_predictions(seen, arguments, min_probability, class_names, named.total, labelled=labelled)
    else:
        failed = print_predictions(seen, arguments.top, min_probability, class_names)
    if arguments.attribution and kept.rows:
        drawn = [(file.path, row) for file, row in zip(kept.files, kept.rows, strict=True)]
        picture = attribution(model, arguments.model, drawn, class_names)
        writing.write_picture("attribution", arguments.attribution, picture)
    if labelled and kept.rows:
        print_metrics(kept, class_names, arguments.files, min_probability)
    if failed:
        sys.exit(command.BAD_INPUT_STATUS)


def find_files(arguments: flags.PredictArguments) -> Named:
    """Return the files that the command line names, and check what can be checked before TensorFlow is imported.

    Raises:
        UserError: a pattern that matches nothing, a folder without pictures, no file that can be read, more files than are drawn, a run
            that has no model to draw with, or an output that cannot be written.
    """
    if arguments.output:
        rows.check_writable("output", arguments.output)
    if arguments.attribution:
        paths.check_has_model(arguments.model)
    expanded = expand_patterns(map(str, arguments.files))
    problems = [problem_of(path) for path in expanded]
    if all(problems):
        for problem in problems[:-1]:
            _say(problem)
        raise problems[-1] or AssertionError
    count, folders = 0, set()
    for file in picture_files(expanded):
        count += 1
        folders.add(file.class_folder)
    if arguments.attribution and count > flags.MOST_DRAWN:
        raise UserError(f"--attribution draws at most {flags.MOST_DRAWN} images. Received: {count}")
    return Named(expanded, count, frozenset(folders))


def threshold_of(arguments: flags.PredictArguments) -> float:
    """Return the probability below which a file is unknown, 0..1: `--min_probability`, or what `--precision` fits on validation.

    Raises:
        UserError: the run has no validation logits, or the precision is out of reach.
    """
    if arguments.precision is None:
        return arguments.min_probability
    from cifar_keras.evaluation.calibration import softmax
    from cifar_keras.evaluation.selective import fit_threshold

    logits, labels, temperature = finished_run.read_validation(arguments.model)
    found = fit_threshold(softmax(logits, temperature), labels, arguments.precision)
    print(
        f"--precision={arguments.precision}: below a probability of {found.probability:.4f} a file is unknown. That leaves "
        f"{found.answered:,} of {found.images:,} validation images, and {found.right / found.answered:.2%} of these are right "
        f"({found.interval.low:.2%} to {found.interval.high:.2%})",
        file=sys.stderr,
        flush=True,
    )
    return found.probability


def problem_of(path: Path) -> UserError | None:
    """Return why a file cannot be read, or None. The file is not opened, because opening a pipe would wait."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) or os.access(path, os.R_OK):
            return None
        reason = os.strerror(errno.EACCES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"the image file cannot be read: {reason}. Received: {paths.shown(path)}")


def _say(problem: UserError | None) -> None:
    print(f"error: {problem}", file=sys.stderr, flush=True)


def _kept(classified: Iterable[tuple[PictureFile, "Row"]], kept: Kept) -> Iterator[tuple[PictureFile, "Row"]]:
    """Yield each file with its probabilities, and keep both if it has some."""
    for file, row in classified:
        if not isinstance(row, UserError):
            kept.rows.append(row)
            kept.files.append(file)
        yield file, row


def print_predictions(
    classified: Iterable[tuple[PictureFile, "Row"]], top: int, min_probability: float, class_names: Sequence[str]
) -> int:
    """Print a line for each file, and return the number of files that could not be classified."""
    from cifar_keras.reporting.predictions import best_classes

    failed = 0
    for file, row in classified:
        if isinstance(row, UserError):
            _say(row)
            failed += 1
            continue
        best = best_classes(row, class_names, top, min_probability)
        line = "  ".join(f"{name} {probability:.4f}" for name, probability in best)
        print(f"{paths.shown(file.path)}  {line}", flush=True)
    return failed


def write_predictions(
    classified: Iterable[tuple[PictureFile, "Row"]],
    arguments: flags.PredictArguments,
    min_probability: float,
    class_names: Sequence[str],
    count: int,
    *,
    labelled: bool,
) -> int:
    """Write a row for each file to `--output`, and return the number of files that could not be classified."""
    from cifar_keras.reporting.predictions import best_classes, columns_of, table_row

    assert arguments.output
    columns = columns_of(top := min(arguments.top, len(class_names)), labelled=labelled)
    failed = 0
    with rows.rows_written("output", arguments.output, columns) as write:
        for file, row in progress(classified, desc="predict", unit="file", total=count):
            if isinstance(row, UserError):
                failed += 1
                write(table_row(file, row, columns))
            else:
                write(table_row(file, best_classes(row, class_names, top, min_probability), columns))
    print(f"written: {arguments.output}, {count:,} files", flush=True)
    if failed:
        _say(
            UserError(
                f"some files could not be classified, and the column error says why. Received: {failed:,} of {count:,}"
            )
        )
    return failed


def print_metrics(kept: Kept, class_names: Sequence[str], named: Sequence[Path], min_probability: float) -> None:
    """Print the metrics of files that lie in folders which are named like the classes of the model."""
    from cifar_keras.reporting.predictions import labels_of, metrics_text, unknown_text

    probabilities = np.stack(kept.rows)
    labels = labels_of([file.class_folder for file in kept.files], class_names)
    print(metrics_text(probabilities, labels, class_names, f"{' '.join(map(paths.shown, named))}, as served"))
    if min_probability:
        print(unknown_text(probabilities, labels, min_probability))


def attribution(
    model: Any, workdir: Path, classified: Sequence[tuple[Path, NDArray[np.float32]]], class_names: Sequence[str]
) -> bytes:
    """Return a picture that shows which pixels the two most probable classes of image files come from.

    Args:
        model: the SavedModel of a run, loaded.
        workdir: of the run.
        classified: files with their probabilities, float32 `[classes]`. They are drawn as the model sees them: square, in the size
            of its training images.
        class_names: of the model.

    Returns:
        A PNG file.
    """
    import keras
    import tensorflow as tf

    from cifar_keras.evaluation.attribution import explaining_maps
    from cifar_keras.exporting.classify import decode, read_file
    from cifar_keras.models.resize import central_square
    from cifar_keras.reporting.figures import attribution_picture

    classifier = keras.models.load_model(workdir / paths.MODEL, compile=False)
    side = classifier.get_layer("resize").height
    files = [path for path, _ in classified]
    probabilities = np.stack([row for _, row in classified])
    first, second = probabilities.argsort(axis=1)[:, :-3:-1].T
    titles = [
        f"{class_names[one]} {row[one]:.2f}, {class_names[other]} {row[other]:.2f}\n{paths.shown(path.name)}"
        for path, row, one, other in zip(files, probabilities, first, second, strict=True)
    ]
    squares = [central_square(tf.constant(decode(path, read_file(path)))[None]) for path in files]
    pixels = tf.concat([tf.image.resize(square, (side, side), antialias=True) for square in squares], axis=0)
    images = tf.cast(tf.round(pixels), tf.uint8).numpy()
    maps = explaining_maps(
        classifier,
        lambda hidden: model.serve(tf.constant(hidden))["probabilities"].numpy(),
        images,
        [("predicted", first), ("second", second)],
    )
    return attribution_picture(images, maps, titles)


if __name__ == "__main__":
    command.run(main)
