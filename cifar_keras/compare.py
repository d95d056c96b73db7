"""`python -m cifar_keras.compare RUN RUN...`: compare runs, and test whether they differ by more than chance.

McNemar's test knows only the chance in the test images. Another seed of the same recipe can differ by more (lab book), and among many
pairs some differ by chance.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cifar_keras import command, flags
from cifar_keras.errors import UserError
from cifar_keras.files import environment, paths, writing
from cifar_keras.files.finished_run import FinishedRun, read_finished_run

if TYPE_CHECKING:  # it imports SciPy
    from cifar_keras.evaluation.uncertainty import Difference

PAIRED = ("accuracy", "balanced_accuracy", "macro_f1")


def main(argv: Sequence[str]) -> None:
    """Print a table of the runs and a table of their differences, and draw their curves if `--picture` names a file.

    If the classes have unequally many test images, two more tables have the metrics in which a rare class counts as much as any other.
    """
    arguments = flags.parse_compare(argv)
    runs = [read_finished_run(path) for path in arguments.runs]
    check_same_images(runs)
    # Matplotlib reads these variables when it is imported.
    environment.set_variables()
    from cifar_keras.evaluation.metrics import is_imbalanced
    from cifar_keras.evaluation.uncertainty import mcnemar
    from cifar_keras.reporting.figures import comparison_picture
    from cifar_keras.reporting.tables import averages_table, comparison_table, differences_table, paired_table

    names = [paths.shown(run.path) for run in runs]
    print(comparison_table(names, [run.result for run in runs]))
    right = [run.logits.argmax(axis=1) == run.labels for run in runs]
    pairs = [(first, second) for first in range(len(runs)) for second in range(first + 1, len(runs))]
    print()
    print(differences_table([(names[i], names[j], mcnemar(right[i], right[j])) for i, j in pairs]))
    if is_imbalanced(np.bincount(runs[0].labels).tolist()):
        print(f"\n{averages_table(names, [run.result for run in runs])}\n")
        print(paired_table([(names[i], names[j], differences(runs[i], runs[j])) for i, j in pairs]))
    if arguments.picture:
        batch_sizes = [run.config.data.global_batch_size for run in runs]
        picture = comparison_picture(names, [run.records for run in runs], batch_sizes)
        writing.write_picture("picture", arguments.picture, picture)


def differences(first: FinishedRun, second: FinishedRun) -> "dict[str, Difference]":
    """Return how far the second run's test metrics of `PAIRED` are above the first's."""
    from cifar_keras.evaluation.calibration import softmax
    from cifar_keras.evaluation.metrics import TOP
    from cifar_keras.evaluation.uncertainty import paired_differences, resampled_metrics

    of_first, of_second = (resampled_metrics(softmax(run.logits), run.labels, top=TOP) for run in (first, second))
    return paired_differences(of_first, of_second, PAIRED, len(first.labels), seed=first.config.seed)


def check_same_images(runs: Sequence[FinishedRun]) -> None:
    """Check that all runs were tested on the same images.

    Raises:
        UserError: a run was tested on other images, or has other classes.
    """
    for run in runs[1:]:
        if run.logits.shape != runs[0].logits.shape or not np.array_equal(run.labels, runs[0].labels):
            raise UserError(
                f"the runs were tested on other images, or tell other classes apart. Received: {runs[0].path} and {run.path}"
            )


if __name__ == "__main__":
    command.run(main)
