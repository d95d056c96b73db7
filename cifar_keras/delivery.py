"""What a run delivers: artifacts that are the trained classifier, what they are worth, pictures and a report."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import CORRUPTION_SUITE, EvaluationConfig, Views, other_sets_of
from cifar_keras.data.cifar10.layout import LabelledImages
from cifar_keras.data.splits import Splits
from cifar_keras.evaluation import robustness
from cifar_keras.evaluation.attribution import activation_maps, occlusion_maps
from cifar_keras.evaluation.calibration import fit_temperature, softmax
from cifar_keras.evaluation.galleries import most_confident_errors
from cifar_keras.evaluation.measure import Evaluation, calibrated_metrics, evaluate, serves_at
from cifar_keras.evaluation.test_sets import find_other_sets, read_other_set
from cifar_keras.exporting import saved_model
from cifar_keras.files import paths, writing
from cifar_keras.models.classifier import feature_maps
from cifar_keras.reporting import figures
from cifar_keras.reporting.report import Content, model_card, report_html
from cifar_keras.reporting.tables import further_table
from cifar_keras.training.features import predict_all
from cifar_keras.training.tracking import RunLog

EXPLAINED_IMAGES = 6  # most confident errors; each is computed fifty times, with a square hidden


class Measured(NamedTuple):
    """What the artifacts of a run give."""

    test: Evaluation
    validation: Evaluation
    temperature: float  # of the probabilities that the SavedModel gives
    calibrated_test: dict[str, Any]  # what these probabilities change in the test metrics
    model: tf.Module  # the SavedModel, loaded


def measure(classifier: keras.Model, splits: Splits, path: Path, *, batch_size: int, seed: int) -> Measured:
    """Write the artifacts of a run, measure them, and keep what they predict.

    Raises:
        RuntimeError: an artifact is not the classifier that was trained.
    """
    reloaded = save_model(classifier, path)

    def write_and_load(temperature: float) -> tf.Module:
        saved_model.export_saved_model(reloaded, splits.class_names, path / paths.SAVED_MODEL, temperature=temperature)
        return saved_model.load_saved_model(path)

    def evaluate_split(model: tf.Module, split: LabelledImages, title: str) -> Evaluation:
        return evaluate(model, split, splits.class_names, batch_size, title, seed=seed)

    # Twice, because the temperature that the artifact serves is fitted on what the artifact gives.
    validation = evaluate_split(write_and_load(1.0), splits.validation, "validation")
    temperature = fit_temperature(validation.logits, splits.validation.labels)
    model = write_and_load(temperature)
    test = evaluate_split(model, splits.test, "test")
    check_is_trained(classifier, splits.test, test.logits, path, batch_size)
    if not serves_at(test, temperature):
        raise RuntimeError(
            f"the probabilities are not those of the logits over {temperature}. Received: {path / paths.SAVED_MODEL}"
        )
    calibrated = calibrated_metrics(
        test.logits, splits.test.labels, splits.class_names, temperature=temperature, seed=seed
    )
    predictions = io.BytesIO()
    np.savez(
        predictions,
        test_logits=test.logits,
        test_labels=splits.test.labels,
        validation_logits=validation.logits,
        validation_labels=splits.validation.labels,
    )
    writing.write_whole(path / paths.PREDICTIONS, predictions.getvalue())
    return Measured(test, validation, temperature, calibrated, model)


def save_model(classifier: keras.Model, path: Path) -> keras.Model:
    """Write `model.keras`, and return what it gives when it is read back.

    Raises:
        RuntimeError: the weights that are read back are not the trained ones.
    """
    saved_model.save_classifier(classifier, path / paths.MODEL)
    reloaded = keras.models.load_model(path / paths.MODEL, compile=False)
    pairs = zip(classifier.get_weights(), reloaded.get_weights(), strict=True)
    if not all(np.array_equal(trained, read) for trained, read in pairs):
        raise RuntimeError(f"the weights are not the trained ones. Received: {path / paths.MODEL}")
    return reloaded


def check_is_trained(
    classifier: keras.Model, split: LabelledImages, served: NDArray[np.float32], path: Path, batch_size: int
) -> None:
    """Check that the logits which the SavedModel served for a split are the trained classifier's.

    Raises:
        RuntimeError: they are not.
    """
    trained = predict_all(classifier, split.images, batch_size, "test, as trained")
    difference = saved_model.check_same_logits(trained, served, str(path / paths.SAVED_MODEL))
    print(f"the reloaded model is the trained one: logits within {difference:.1e} on {len(trained):,} test images")


def draw(classifier: keras.Model, measured: Measured, splits: Splits, log: RunLog, path: Path) -> None:
    """Draw what people look at into the workdir and into TensorBoard, and close the log."""
    test, temperature = measured.test, measured.temperature
    images, labels = splits.test
    probabilities = softmax(test.logits, temperature)
    drawn = {
        "reliability": figures.reliability_picture(test.logits, labels, temperature),
        "confusion_matrix": figures.confusion_matrix_picture(test.metrics["confusion_matrix"], splits.class_names),
        "predictions": figures.predictions_picture(images, labels, probabilities, splits.class_names),
        "learning_curves": figures.learning_curves_picture(log.records),
    }
    errors = most_confident_errors(probabilities, labels, EXPLAINED_IMAGES)
    if len(errors):
        drawn["attribution"] = draw_attribution(
            classifier,
            # Not `predict`, which would share these few images out among all devices and leave some with none.
            lambda pixels: measured.model.serve(tf.constant(pixels))["probabilities"].numpy(),
            images[errors],
            [("predicted", probabilities[errors].argmax(axis=1)), ("true", labels[errors])],
            [
                f"{splits.class_names[row.argmax()]} {row.max():.2f},\nis {splits.class_names[label]}"
                for row, label in zip(probabilities[errors], labels[errors], strict=True)
            ],
        )
    for name, picture in drawn.items():
        writing.write_whole(path / f"{name}.png", picture)
        log.write_picture(name, picture)
    log.close()


def draw_attribution(
    classifier: keras.Model,
    probabilities_of: Callable[[NDArray[np.uint8]], NDArray[np.float64]],
    images: NDArray[np.uint8],
    classes: Sequence[tuple[str, NDArray[np.int64]]],
    titles: Sequence[str],
) -> bytes:
    """Draw what speaks for classes of images: Grad-CAM of each of them, and occlusion of the first.

    Args:
        classifier: a run's `model.keras`.
        probabilities_of: what it gives of images, `[n, classes]`, as it is served.
        images: uint8 `[n, height, width, 3]`.
        classes: what a class is called, such as "predicted", and which it is of each image, int64 `[n]`.
        titles: one for each image.
    """
    features = np.asarray(
        feature_maps(classifier).predict_on_batch(images)
    )  # `predict` would make a pipeline of threads
    kernel = np.asarray(classifier.get_layer("head").kernel)
    columns = [(f"Grad-CAM, {called}", activation_maps(features, kernel, indices)) for called, indices in classes]
    called, indices = classes[0]
    columns.append((f"occlusion, {called}", occlusion_maps(probabilities_of, images, indices)))
    return figures.attribution_picture(images, columns, titles)


def evaluate_further(
    model: tf.Module,
    test_logits: NDArray[np.float32],
    splits: Splits,
    path: Path,
    settings: EvaluationConfig,
    *,
    data_dir: str,
    temperature: float,
    batch_size: int,
    seed: int,
) -> None:
    """Measure what the settings ask for beside the run's own splits, print it, and keep it in the workdir.

    Args:
        model: what `saved_model.load_saved_model` returned.
        test_logits: that it gives of the test images.
        splits: of the run.
        path: its workdir. What was measured there earlier and is not asked for again stays.
        settings: which views and which other test sets.
        data_dir: TFDS folder with the other sets.
        temperature: that the model serves with.
        batch_size: images at a time.
        seed: of the noise, of the choice of images and of the resamples.

    Raises:
        UserError: a set is not prepared.
    """

    def predict(images: NDArray[np.uint8], title: str) -> NDArray[np.float32]:
        return saved_model.serve_all(model, images, batch_size, title).logits / np.float32(temperature)

    test, plain, class_names = splits.test, test_logits / np.float32(temperature), splits.class_names
    rows: list[dict[str, Any]] = []
    means: dict[str, Any] = {}
    sets = other_sets_of(settings)
    find_other_sets(sets, data_dir)  # before anything takes long
    if settings.test_time_augmentation is not Views.NONE:
        views = settings.test_time_augmentation
        rows += robustness.with_views(predict, test, plain, views, class_names, seed=seed)
    if CORRUPTION_SUITE in settings.test_sets.split(","):
        measured, means[CORRUPTION_SUITE] = robustness.with_corruptions(predict, test, plain, class_names, seed=seed)
        rows += measured
    of_sets, mean = on_other_sets(predict, sets, data_dir, splits, seed=seed)
    rows, means = rows + of_sets, means | mean
    if rows:
        print(further_table(rows))
        keep_further(rows, means, path)


def on_other_sets(
    predict: robustness.Predict, names: Sequence[str], data_dir: str, splits: Splits, *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure other test sets; return their rows, and the mean over `cifar10_corrupted` where all of it was asked for."""
    rows, right_of_corrupted = [], []
    for name in find_other_sets(names, data_dir):
        for other in read_other_set(name, data_dir, splits.validation):
            measured, right = robustness.on_other_set(predict, other, splits.class_names, seed=seed)
            rows.append(measured)
            if name.startswith("cifar10_corrupted/"):  # the test split each, and TFDS orders all of them alike
                right_of_corrupted.append(right)
    if "cifar10_corrupted" not in names:
        return rows, {}
    return rows, {"cifar10_corrupted": robustness.mean_accuracy(right_of_corrupted, seed=seed)}


def keep_further(rows: Sequence[dict[str, Any]], means: dict[str, Any], path: Path) -> None:
    """Put new rows beside those that the workdir has, or in their place, and draw the corruptions."""
    file = path / paths.FURTHER
    kept = writing.read_json(file) if file.is_file() else {"rows": [], "means": {}}
    every = robustness.merged(kept["rows"], rows)
    of_corruptions = [each for each in every if each["kind"] == "corruption"]
    if of_corruptions:  # before the file that says that there is one
        writing.write_whole(path / "corruptions.png", figures.corruptions_picture(of_corruptions))
    writing.write_json(file, {"rows": every, "means": kept["means"] | means})


def write_report(
    path: Path, result: dict[str, Any], records: Sequence[dict[str, Any]], logits: NDArray[np.float32], splits: Splits
) -> None:
    """Write `report.html` and `model_card.md` of all that lies in a workdir.

    Args:
        path: the workdir.
        result: what `result.json` says, or will say.
        records: lines of `metrics.jsonl`.
        logits: float32 `[n, classes]`, of the test images.
        splits: of the run.
    """
    content = Content(
        name=paths.shown(path.resolve().name),
        result=result,
        records=records,
        images=splits.test.images,
        labels=splits.test.labels,
        logits=logits,
        class_names=splits.class_names,
        pictures={file.stem: file.read_bytes() for file in sorted(path.glob("*.png"))},
        **{
            part: writing.read_json(path / file)
            for part, file in (
                ("further", paths.FURTHER),
                ("exports", paths.EXPORTS),
                ("explanation", paths.EXPLANATION),
            )
            if (path / file).is_file()
        },
    )
    writing.write_whole(path / paths.REPORT, report_html(content).encode())
    writing.write_whole(path / paths.MODEL_CARD, model_card(content).encode())
