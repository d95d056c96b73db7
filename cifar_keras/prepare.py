"""`python -m cifar_keras.prepare`: fetch and verify the data and weights of a run, for machines that will be offline."""

from collections.abc import Sequence

from cifar_keras import command, flags
from cifar_keras.files import environment


def main(argv: Sequence[str]) -> None:
    """Make sure that this machine has the data and the weights of the run that the flags describe, verified."""
    config = flags.parse_config(argv)
    environment.load_keras()
    from cifar_keras.data.datasets import check_outside, load_dataset
    from cifar_keras.models.classifier import make_classifier
    from cifar_keras.models.weights import check_weights

    # These come before the data, which can take minutes.
    check_outside(config)
    check_weights(config.model.weights)
    dataset = load_dataset(config)
    class_count = len(dataset.class_names)
    make_classifier(config.model, class_count, seed=config.seed, timeout_seconds=config.source_timeout_seconds)
    counts = ", ".join(f"{count:,} {name}" for name, count in dataset.contents.images)
    print(f"images: {counts}; {class_count} classes")
    print(f"weights: {config.model.weights} for {config.model.backbone}")


if __name__ == "__main__":
    command.run(main)
