"""`python -m cifar_keras.explain --model=WORKDIR`: what a run's model finds alike, and which training labels look wrong."""

from collections.abc import Sequence

from cifar_keras import command, flags
from cifar_keras.files import environment, paths, workdir, writing
from cifar_keras.files.finished_run import check_found, read_finished_run


def main(argv: Sequence[str]) -> None:
    """Compute features of test and training images, and write what they say into the workdir and its report."""
    arguments = flags.parse_explain(argv)
    run = read_finished_run(arguments.model).with_data_dir(arguments.data_dir)
    paths.check_has_model(run.path)
    check_found(run.path)
    environment.load_keras()
    from cifar_keras import delivery
    from cifar_keras.data.splits import make_splits
    from cifar_keras.explanation import explain_labels, explain_predictions
    from cifar_keras.run import load_images

    dataset = load_images(run.config)
    splits = make_splits(dataset, run.config.data.validation_share, run.config.seed)
    with workdir.claimed(run.path, "--model"):
        # The labels first: too few images, or weights that are not there, are known before anything takes long.
        suspects = explain_labels(run, dataset, arguments.train_images)
        explanation = explain_predictions(run, splits, arguments.train_images) | {"suspects": suspects}
        writing.write_json(run.path / paths.EXPLANATION, explanation)
        delivery.write_report(run.path, run.result, run.records, run.logits, splits)
    print(f"written: {run.path / paths.REPORT}")


if __name__ == "__main__":
    command.run(main)
