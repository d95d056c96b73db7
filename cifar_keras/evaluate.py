"""`python -m cifar_keras.evaluate --model=WORKDIR`: measure a run's SavedModel again, and its robustness."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_keras import command, flags
from cifar_keras.config import EvaluationConfig, other_sets_of, unknown_folder_of
from cifar_keras.data.datasets import is_prepared
from cifar_keras.data.pictures.finding import find_unknown
from cifar_keras.files import environment, paths, workdir
from cifar_keras.files.finished_run import check_found, read_finished_run

if TYPE_CHECKING:  # it imports TensorFlow
    from cifar_keras.evaluation.measure import Evaluation

# In another process or on another day, the same SavedModel may choose other kernels. Then float32 logits move by about 1e-6, and means
# over the images with them. One image may get another prediction.
TOLERANCE = 1e-4
# These are compared in addition to accuracy. All other metrics follow from the same logits.
COMPARED = ("loss", "brier")


def main(argv: Sequence[str]) -> None:
    """Measure a run on test and validation, compare with its `result.json`, and then measure robustness as the flags ask."""
    arguments = flags.parse_evaluate(argv)
    run = read_finished_run(arguments.model).with_data_dir(arguments.data_dir, is_prepared)
    if arguments.settings != EvaluationConfig():
        check_found(run.path)
        find_unknown(unknown_folder_of(arguments.settings))
    data, seed = run.config.data, run.config.seed
    environment.load_keras()
    import tensorflow as tf

    from cifar_keras.data.cifar10.test_sets import find_other_sets
    from cifar_keras.data.datasets import load_again
    from cifar_keras.evaluation.measure import evaluate
    from cifar_keras.evaluation.robustness import measure_robustness
    from cifar_keras.exporting.saved_model import check_classes, load_saved_model
    from cifar_keras.reporting import pages
    from cifar_keras.reporting.tables import metrics_table

    # As when the run was measured.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    # Before the data, which can take minutes.
    model = load_saved_model(arguments.model)
    find_other_sets(other_sets_of(arguments.settings), data.data_dir)
    dataset = load_again(run)
    check_classes(model, dataset.class_names, arguments.model)
    splits = {"test": dataset.test, "validation": dataset.validation}
    if not (run.path / paths.DATASET).is_file():
        print("validation is left out: an earlier version of the program made the run, and held out other images")
        del splits["validation"]
    measured = {
        name: evaluate(model, split, dataset.class_names, data.global_batch_size, name, seed=seed)
        for name, split in splits.items()
    }
    for name, found in measured.items():
        print(metrics_table(found.metrics, f"{name}, {arguments.model}"))
    check_as_reported(measured, run.result, arguments.model / paths.RESULT)
    # Without such settings the workdir stays as it is.
    if arguments.settings != EvaluationConfig():
        wanted = dataclasses.replace(run.config, evaluation=arguments.settings)
        with workdir.claimed(run.path, "--model"):
            temperature = run.result["calibration"]["temperature"]
            robustness = measure_robustness(model, measured["test"].logits, temperature, dataset, wanted)
            pages.keep_robustness(robustness, run.path)
            pages.write_report_again(run, dataset)


def check_as_reported(measured: "Mapping[str, Evaluation]", reported: Mapping[str, Any], file: Path) -> None:
    """Check that the measured metrics agree with those in a run's `result.json`; otherwise end the program with status 1.

    Args:
        measured: evaluations by the name of the split.
        reported: content of `result.json`.
        file: path of `result.json`, for the messages.
    """
    from cifar_keras.evaluation.measure import serves_at

    temperature = reported["calibration"]["temperature"]
    others = differences({name: found.metrics for name, found in measured.items()}, reported)
    others += [
        f"{name} at another temperature" for name, found in measured.items() if not serves_at(found, temperature)
    ]
    if others:
        sys.exit(f"error: the metrics differ from those in {file}. Received: {'; '.join(others)}")
    print(f"the metrics agree with {file}")


def differences(measured: Mapping[str, Mapping[str, Any]], reported: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a text for each metric that differs from the reported one: accuracy by more than one image, others by more than `TOLERANCE`.

    Args:
        measured: metrics by the name of the split.
        reported: the same, as `result.json` has them.

    Examples:
        >>> reported = {"test": {"accuracy": 0.9, "loss": 0.3, "brier": 0.1}}
        >>> differences({"test": {"n": 100, "accuracy": 0.9, "loss": 0.4, "brier": 0.1}}, reported)
        ['test loss 0.400000, not 0.300000']
    """
    found = []
    for split, metrics in measured.items():
        # Counted in whole images, because the difference of two rounded fractions can exceed a bound that it should equal.
        right, reported_right = (round(each["accuracy"] * metrics["n"]) for each in (metrics, reported[split]))
        if abs(right - reported_right) > 1:
            found.append(f"{split} accuracy {metrics['accuracy']:.6f}, not {reported[split]['accuracy']:.6f}")
        found += [
            f"{split} {metric} {metrics[metric]:.6f}, not {reported[split][metric]:.6f}"
            for metric in COMPARED
            if not abs(metrics[metric] - reported[split][metric]) <= TOLERANCE
        ]
    return found


if __name__ == "__main__":
    command.run(main)
