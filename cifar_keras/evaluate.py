"""`python -m cifar_keras.evaluate --model=WORKDIR`: measure a run's SavedModel again, and on more than its own splits."""

import sys
from collections.abc import Mapping, Sequence

from cifar_keras import environment, flags, paths, workdir
from cifar_keras.config import EvaluationConfig, other_sets_of
from cifar_keras.finished_run import read_finished_run

# The same SavedModel in another process or on another day may choose other kernels; float32 logits then move by about
# 1e-6, and with them means over the images. Of 10,000 images one may have another prediction.
TOLERANCE = 1e-4
COMPARED = ("loss", "accuracy", "brier")  # what is reported beside them follows from the same logits


def main(argv: Sequence[str]) -> None:
    """Evaluate on test and validation, compare with what the run reported, and go on to what the flags ask for."""
    arguments = flags.parse_evaluate(argv)
    run = read_finished_run(arguments.model).with_data_dir(arguments.data_dir)
    data, seed = run.config.data, run.config.seed
    environment.set_tensorflow_variables()
    import tensorflow as tf

    from cifar_keras import delivery
    from cifar_keras.data.other_sets import find_other_sets
    from cifar_keras.reporting.evaluation import evaluate
    from cifar_keras.reporting.tables import metrics_table
    from cifar_keras.run import load_splits
    from cifar_keras.saved_model import check_classes, load_saved_model

    tf.config.experimental.enable_tensor_float_32_execution(False)  # as when the run was measured
    model = load_saved_model(arguments.model)  # before the data, which can take minutes
    find_other_sets(other_sets_of(arguments.settings), data.data_dir)
    splits = load_splits(run.config)
    check_classes(model, splits.class_names, arguments.model)
    measured = {
        name: evaluate(model, split, splits.class_names, data.global_batch_size, name, seed=seed)
        for name, split in (("test", splits.test), ("validation", splits.validation))
    }
    for name, found in measured.items():
        print(metrics_table(found.metrics, f"{name}, {arguments.model}"))
    if others := differences({name: found.metrics for name, found in measured.items()}, run.result):
        sys.exit(f"error: {arguments.model / paths.RESULT} reports others. Received: {'; '.join(others)}")
    print(f"as {arguments.model / paths.RESULT} reports")
    if arguments.settings == EvaluationConfig():
        return  # and the workdir is as it was
    with workdir.claimed(run.path, "--model"):
        delivery.evaluate_further(
            model,
            measured["test"].logits,
            splits,
            run.path,
            arguments.settings,
            data_dir=data.data_dir,
            temperature=run.result["calibration"]["temperature"],
            batch_size=data.global_batch_size,
            seed=seed,
        )
        delivery.write_report(run.path, run.result, run.records, run.logits, splits)


def differences(measured: Mapping[str, Mapping[str, float]], reported: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Say which figures of which splits are not those that were reported, by more than `TOLERANCE`."""
    return [
        f"{split} {figure} {metrics[figure]:.6f}, not {reported[split][figure]:.6f}"
        for split, metrics in measured.items()
        for figure in COMPARED
        if not abs(metrics[figure] - reported[split][figure]) <= TOLERANCE
    ]


if __name__ == "__main__":
    flags.run_command(main)
