"""`python -m cifar_keras.prepare`: fetch and verify data and weights ahead of a run, for machines that will be offline."""

from collections.abc import Sequence

from cifar_keras import environment, flags


def main(argv: Sequence[str]) -> None:
    """Make the data folder and the weights of the flags' run exist on this machine, verified."""
    config = flags.parse_config(argv)
    environment.set_tensorflow_variables()
    from cifar_keras.data.sources import load_dataset
    from cifar_keras.models.classifier import build_backbone
    from cifar_keras.models.weights import load_weights

    data = config.data
    dataset = load_dataset(data.data_source, data.data_dir, data.archive, config.source_timeout_seconds, config.seed)
    print(f"data: {len(dataset.train.labels):,} + {len(dataset.test.labels):,} images, verified ({data.data_dir})")
    model = config.model
    backbone = build_backbone(model.backbone, model.image_size)
    load_weights(backbone, model.backbone, model.weights, config.source_timeout_seconds)
    print(f"weights: {model.weights} for {model.backbone}, verified")


if __name__ == "__main__":
    flags.run_command(main)
