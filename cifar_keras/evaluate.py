"""`python -m cifar_keras.evaluate --model=WORKDIR`: measure a run's exported model again, on its own splits."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cifar_keras import artifacts, config, environment, flags, paths
from cifar_keras.errors import UserError

# The same SavedModel in another process or on another day may choose other kernels; float32 logits then move by about
# 1e-6, and with them the mean loss.
LOSS_TOLERANCE = 1e-4


def main(argv: Sequence[str]) -> None:
    """Evaluate on test and validation, print both tables, and compare with what the run reported."""
    arguments = flags.parse_evaluate(argv)
    reported, run_config = read_result(arguments.model / paths.RESULT)
    if arguments.data_dir:
        run_config = replace(run_config, data=replace(run_config.data, data_dir=arguments.data_dir))
    environment.set_tensorflow_variables()
    from cifar_keras.export import load_saved_model
    from cifar_keras.reporting.evaluation import evaluate
    from cifar_keras.reporting.tables import metrics_table
    from cifar_keras.run import load_splits

    model = load_saved_model(arguments.model)  # before the data, which can take minutes
    splits = load_splits(run_config)
    differs = False
    for name, split in (("test", splits.test), ("validation", splits.validation)):
        batch_size = run_config.data.global_batch_size
        metrics = evaluate(model, split, splits.class_names, batch_size, name, seed=run_config.seed).metrics
        print(metrics_table(metrics, f"{name}, {arguments.model}"))
        differs |= abs(metrics["loss"] - reported[name]["loss"]) > LOSS_TOLERANCE
    if differs:
        sys.exit(f"error: these are not the figures that {arguments.model / paths.RESULT} reports")
    print(f"as {arguments.model / paths.RESULT} reports")


def read_result(path: Path) -> tuple[dict[str, Any], config.RunConfig]:
    """Return what a run reported, and its config.

    Raises:
        UserError: the file is missing, or no run of this version wrote it.
    """
    result = artifacts.read_json(path)
    try:
        run_config = config.from_values(result["config"])
        config.validate(run_config)
        float(result["test"]["loss"]), float(result["validation"]["loss"])
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the result cannot be used: {type(error).__name__}, {error}. Received: {path}") from error
    return result, run_config


if __name__ == "__main__":
    flags.run_command(main)
