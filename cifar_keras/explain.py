"""`python -m cifar_keras.explain --model=WORKDIR`: show which images a run's model finds alike, and which training labels look wrong."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cifar_keras import command, flags
from cifar_keras.data.datasets import is_prepared
from cifar_keras.files import environment, paths, workdir, writing
from cifar_keras.files.finished_run import FinishedRun, check_found, read_finished_run

if TYPE_CHECKING:  # they import TensorFlow
    from cifar_keras.data.types import Dataset, PublishedDataset

# The most confident errors, whose neighbours are shown.
ERRORS = 12


def main(argv: Sequence[str]) -> None:
    """Compute the features of test and training images, and write the findings into the workdir and its report."""
    arguments = flags.parse_explain(argv)
    run = read_finished_run(arguments.model).with_data_dir(arguments.data_dir, is_prepared)
    paths.check_has_model(run.path)
    check_found(run.path)
    environment.load_keras()
    from cifar_keras.data.datasets import divide, load_published
    from cifar_keras.reporting import pages

    published = load_published(run.config)
    dataset = divide(published, run.config)
    workdir.check_same_images(run.path, dataset.contents.digest)
    with workdir.claimed(run.path, "--model"):
        # The labels come first, so that too few images or missing weights are reported before anything takes long.
        suspects = explain_labels(run, published, arguments.train_images)
        explanation = explain_predictions(run, dataset, arguments.train_images) | {"suspects": suspects}
        writing.write_json(run.path / paths.EXPLANATION, explanation)
        pages.write_report_again(run, dataset)
    print(f"written: {run.path / paths.REPORT}")


def explain_predictions(run: FinishedRun, dataset: "Dataset", train_images: int) -> dict[str, Any]:
    """Return the training images nearest to the most confident errors, and write a map and the files of TensorBoard's projector.

    Args:
        run: the run.
        dataset: the run's images.
        train_images: how many images of the train split are used; 0 is all.

    Returns:
        The content of `explanation.json`, except the suspect labels.
    """
    import keras

    from cifar_keras.evaluation.calibration import softmax
    from cifar_keras.evaluation.explanation import choose, features_of
    from cifar_keras.evaluation.galleries import most_confident_errors
    from cifar_keras.reporting.explanation import neighbours_of, write_map
    from cifar_keras.reporting.report import image_uri

    classifier = keras.models.load_model(run.path / paths.MODEL, compile=False)
    features = features_of(classifier, run.config.data.global_batch_size)
    test, class_names = dataset.test, dataset.class_names
    chosen = choose(len(dataset.train.labels), train_images, run.config.seed)
    train = dataset.train.at(chosen)
    of_test, of_train = features(test.images, "test"), features(train.images, "train")
    write_map(of_test, test, run.logits.argmax(axis=1), class_names, run.path, seed=run.config.seed)
    probabilities = softmax(run.logits, run.result["calibration"]["temperature"])
    errors = most_confident_errors(probabilities, test.labels, ERRORS)
    near = neighbours_of(of_test[errors], of_train, train, class_names) if len(errors) else []
    return {
        "train_images": len(train.labels),
        "neighbours": [
            {
                "image": image_uri(test.images[error]),
                "label": class_names[test.labels[error]],
                "predicted": class_names[probabilities[error].argmax()],
                "confidence": float(probabilities[error].max()),
                "nearest": nearest_images,
            }
            for error, nearest_images in zip(errors, near, strict=True)
        ],
    }


def explain_labels(run: FinishedRun, published: "PublishedDataset", train_images: int) -> dict[str, Any] | None:
    """Return the suspect labels of the train set for the report, and write all of them into the workdir.

    The run's own network has learned from these labels. So the labels are judged by features of the network with which it began.

    Args:
        run: the run.
        published: the run's images.
        train_images: how many images of the train set are checked; 0 is all.

    Returns:
        The entry `suspects` of `explanation.json`; None if the run did not begin with ImageNet's weights, or if a class is too small.

    Raises:
        UserError: too few images of a class are checked.
    """
    from cifar_keras.evaluation.explanation import choose, features_of, find_suspects
    from cifar_keras.evaluation.suspects import FOLDS
    from cifar_keras.models.classifier import make_classifier
    from cifar_keras.reporting.explanation import write_suspects

    config, class_names = run.config, published.class_names
    if config.model.weights != "imagenet":
        print("no suspect labels: they need a run with --weights=imagenet")
        return None
    counts = Counter(published.train.labels.tolist())
    count, name = min((counts[index], name) for index, name in enumerate(class_names))
    if count < FOLDS:
        print(f"no suspect labels: they need {FOLDS} training images of each class, and {name} has {count}")
        return None
    places = choose(len(published.train.labels), train_images, config.seed)
    looked_at = published.train.at(places)
    began = make_classifier(
        config.model,
        len(class_names),
        seed=config.seed,
        timeout_seconds=config.source_timeout_seconds,
        fetch=False,
    )
    features = features_of(began, config.data.global_batch_size)
    found = find_suspects(features, looked_at, len(class_names), seed=config.seed)
    names = [published.names[place] for place in places]
    return write_suspects(found, looked_at, names, places, class_names=class_names, path=run.path)


if __name__ == "__main__":
    command.run(main)
