"""`python -m cifar_keras.prepare`: fetch and verify data and weights ahead of a run, for machines that will be offline."""

from collections.abc import Sequence

from cifar_keras import command, flags
from cifar_keras.files import environment


def main(argv: Sequence[str]) -> None:
    """Make the data folder and the weights of the flags' run exist on this machine, verified."""
    config = flags.parse_config(argv)
    environment.load_keras()
    from cifar_keras.data.datasets import load_dataset
    from cifar_keras.models.classifier import make_classifier
    from cifar_keras.models.weights import check_weights

    check_weights(config.model.weights)  # before the data, which can take minutes
    train, validation, test, class_names = load_dataset(config)
    make_classifier(config.model, len(class_names), seed=config.seed, timeout_seconds=config.source_timeout_seconds)
    print(f"images: {len(train.labels):,} train, {len(validation.labels):,} validation, {len(test.labels):,} test")
    print(f"weights: {config.model.weights} for {config.model.backbone}")


if __name__ == "__main__":
    command.run(main)
