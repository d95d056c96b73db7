"""What a run delivers: artifacts that are the trained classifier, what they are worth, pictures and a report."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras import artifacts, export, paths
from cifar_keras.data.cifar10 import LabelledImages
from cifar_keras.data.splits import Splits
from cifar_keras.models.classifier import feature_maps
from cifar_keras.reporting import pictures
from cifar_keras.reporting.attribution import activation_maps, occlusion_maps
from cifar_keras.reporting.calibration import fit_temperature, softmax
from cifar_keras.reporting.evaluation import Evaluation, calibrated_metrics, evaluate
from cifar_keras.reporting.galleries import most_confident_errors
from cifar_keras.reporting.report import Content, model_card, report_html
from cifar_keras.training.features import predict_all
from cifar_keras.training.run_log import RunLog

EXPLAINED_IMAGES = 6  # most confident errors; each is computed some fifty times, with a square hidden


class Measured(NamedTuple):
    """What the artifacts of a run give."""

    test: Evaluation
    validation: Evaluation
    temperature: float  # of the probabilities that the SavedModel gives
    calibrated_test: dict[str, Any]  # what these probabilities change in the test metrics


def measure(classifier: keras.Model, splits: Splits, path: Path, *, batch_size: int, seed: int) -> Measured:
    """Write the artifacts of a run, measure them, and keep what they predict.

    Raises:
        RuntimeError: an artifact is not the classifier that was trained.
    """
    # TF32 would round the products of a newer GPU to 10 bits, each kernel in its own way; on a CPU it changes nothing.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    reloaded = save_model(classifier, path)

    def evaluate_artifact(split: LabelledImages, title: str, temperature: float) -> Evaluation:
        export.export_saved_model(reloaded, splits.class_names, path / paths.SAVED_MODEL, temperature=temperature)
        return evaluate(export.load_saved_model(path), split, splits.class_names, batch_size, title, seed=seed)

    # Twice, because the temperature that the artifact serves is fitted on what the artifact gives.
    validation = evaluate_artifact(splits.validation, "validation", 1.0)
    temperature = fit_temperature(validation.logits, splits.validation.labels)
    test = evaluate_artifact(splits.test, "test", temperature)
    check_is_trained(classifier, splits.test, test.logits, path, batch_size)
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
    artifacts.write_whole(path / paths.PREDICTIONS, predictions.getvalue())
    return Measured(test, validation, temperature, calibrated)


def save_model(classifier: keras.Model, path: Path) -> keras.Model:
    """Write `model.keras`, and return what it gives when it is read back.

    Raises:
        RuntimeError: the weights that are read back are not the trained ones.
    """
    export.save_classifier(classifier, path / paths.MODEL)
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
    trained = predict_all(classifier, split.images, batch_size, "test, model.keras")
    difference = export.check_same_logits(trained, served, str(path / paths.SAVED_MODEL))
    print(f"the reloaded model is the trained one: logits within {difference:.1e} on {len(trained):,} test images")


def draw(classifier: keras.Model, measured: Measured, splits: Splits, log: RunLog, path: Path) -> dict[str, bytes]:
    """Draw what people look at into the workdir and into TensorBoard, close the log, and return the PNG files by their names."""
    test, temperature = measured.test, measured.temperature
    images, labels = splits.test
    probabilities = softmax(test.logits, temperature)
    drawn = {
        "reliability": pictures.reliability_picture(test.logits, labels, temperature),
        "confusion_matrix": pictures.confusion_matrix_picture(test.metrics["confusion_matrix"], splits.class_names),
        "predictions": pictures.predictions_picture(images, labels, probabilities, splits.class_names),
        "learning_curves": pictures.learning_curves_picture(log.records),
    }
    errors = most_confident_errors(probabilities, labels, EXPLAINED_IMAGES)
    if len(errors):
        drawn["attribution"] = draw_attribution(
            classifier, images[errors], labels[errors], temperature, splits.class_names
        )
    for name, picture in drawn.items():
        artifacts.write_whole(path / f"{name}.png", picture)
        log.write_picture(name, picture)
    log.close()
    return drawn


def draw_attribution(
    classifier: keras.Model,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    temperature: float,
    class_names: Sequence[str],
) -> bytes:
    """Draw what speaks for the predicted and for the true class of images."""

    def probabilities_of(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return softmax(np.asarray(classifier.predict(pixels, verbose=0)), temperature)

    probabilities = probabilities_of(images)
    predicted = probabilities.argmax(axis=1)
    features = feature_maps(classifier).predict(images, verbose=0)
    kernel = np.asarray(classifier.get_layer("head").kernel)

    columns = [
        ("Grad-CAM, predicted", activation_maps(features, kernel, predicted)),
        ("Grad-CAM, true", activation_maps(features, kernel, labels)),
        ("occlusion, predicted", occlusion_maps(probabilities_of, images, predicted)),
    ]
    titles = [
        f"{class_names[taken_for]} {row.max():.2f},\nis {class_names[label]}"
        for taken_for, row, label in zip(predicted, probabilities, labels, strict=True)
    ]
    return pictures.attribution_picture(images, columns, titles)


def write_report(content: Content, path: Path) -> None:
    """Write `report.html` and `model_card.md` into the workdir."""
    artifacts.write_whole(path / paths.REPORT, report_html(content).encode())
    artifacts.write_whole(path / paths.MODEL_CARD, model_card(content).encode())
