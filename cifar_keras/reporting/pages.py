"""Write what people look at in a workdir, from numbers: pictures, the report and the model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import CORRUPTION_SUITE, AugmentationConfig
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pipeline import Examples, training_batches
from cifar_keras.data.types import Dataset, LabelledImages
from cifar_keras.evaluation.attribution import explaining_maps
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.galleries import most_confident_errors
from cifar_keras.evaluation.robustness import Robustness, merged
from cifar_keras.files import paths, writing
from cifar_keras.files.finished_run import FinishedRun
from cifar_keras.reporting import figures
from cifar_keras.reporting.report import Content, model_card, report_html
from cifar_keras.reporting.tables import robustness_table, unknown_table

# Augmented training images in the picture: 4 rows of 8.
SHOWN_IMAGES = 32
# Most confident errors in the picture. The model computes each about fifty times, each time with another square hidden.
EXPLAINED_IMAGES = 6


def pictures_of_test(
    test: LabelledImages,
    logits: NDArray[np.float32],
    metrics: Mapping[str, Any],
    class_names: Sequence[str],
    temperature: float,
) -> dict[str, bytes]:
    """Return pictures that show how a model does on the test split.

    Args:
        test: images and labels.
        logits: float32 `[n, classes]`, the model's logits of the images.
        metrics: what `classification_metrics` returned for these logits.
        class_names: the class names of the model.
        temperature: the temperature that the model serves with.

    Returns:
        PNG files by their names in the workdir, without ".png".
    """
    probabilities = softmax(logits, temperature)
    return {
        "reliability": figures.reliability_picture(logits, test.labels, temperature),
        "coverage": figures.coverage_picture(probabilities, test.labels),
        "confusion_matrix": figures.confusion_matrix_picture(metrics["confusion_matrix"], class_names),
        "predictions": figures.predictions_picture(test.images, test.labels, probabilities, class_names),
    }


def pictures_of_errors(
    classifier: keras.Model,
    model: tf.Module,
    test: LabelledImages,
    probabilities: NDArray[np.float64],
    class_names: Sequence[str],
) -> dict[str, bytes]:
    """Return a picture of the most confident errors and of the parts of the images that they come from; none without errors.

    Args:
        classifier: the classifier of the run.
        model: the same as a SavedModel, loaded.
        test: images and labels.
        probabilities: float64 `[n, classes]`, the probabilities of the model for the images.
        class_names: the class names of the model.

    Returns:
        A PNG file by its name in the workdir, without ".png".
    """
    errors = most_confident_errors(probabilities, test.labels, EXPLAINED_IMAGES)
    if not len(errors):
        return {}
    images, labels, rows = test.images[errors], test.labels[errors], probabilities[errors]
    maps = explaining_maps(
        classifier,
        # Not `predict`, which would share these few images out among all devices and leave some with none.
        lambda pixels: model.serve(tf.constant(pixels))["probabilities"].numpy(),
        images,
        [("predicted", rows.argmax(axis=1)), ("true", labels)],
    )
    titles = [
        f"{class_names[row.argmax()]} {row.max():.2f},\nis {class_names[label]}"
        for row, label in zip(rows, labels, strict=True)
    ]
    return {"attribution": figures.attribution_picture(images, maps, titles)}


def augmented_images_picture(
    train: Examples, class_names: Sequence[str], augmentation: AugmentationConfig, seed: int
) -> bytes:
    """Return a PNG file with some training images as the network sees them: augmented, as in the first batch of a run.

    Args:
        train: the train split.
        class_names: of the data set.
        augmentation: the settings of the run.
        seed: the run's seed.
    """
    batches = training_batches(
        train,
        global_batch_size=min(SHOWN_IMAGES, train.total),
        steps_per_epoch=1,
        seed=seed,
        steps=range(1),
        augment=make_augmentation(augmentation),
        parallel_calls=None,
    )
    images, targets = next(iter(batches))
    titles = [_title_of(label, class_names) for label in targets["labels"].numpy()]
    return figures.image_grid_picture(images.numpy(), titles, columns=8)


def _title_of(label: NDArray[np.float32], class_names: Sequence[str]) -> str:
    r"""Return the class of a label; of a mixed one its two classes with their weights, one on each line.

    Examples:
        >>> _title_of(np.array([0.25, 0, 0.75]), ["cat", "dog", "ship"])
        'ship 0.75\ncat 0.25'
    """
    first, second = map(int, np.argsort(-label, kind="stable")[:2])
    if label[second] < 0.005:
        return class_names[first]
    return "\n".join(f"{class_names[place]} {label[place]:.2f}" for place in (first, second))


def keep_robustness(measured: Robustness, path: Path) -> None:
    """Print the rows of robustness, merge them into the rows of a workdir, and draw the corruptions."""
    if measured.rows:
        print(robustness_table(measured.rows))
    if measured.unknown:
        print(unknown_table(measured.unknown))
    if not measured.rows and not measured.unknown:
        return
    if CORRUPTION_SUITE in measured.means:
        print(f"The corruptions are as strong as those of {measured.means[CORRUPTION_SUITE]['strengths']}.")
    file = path / paths.ROBUSTNESS
    kept = writing.read_json(file) if file.is_file() else {"rows": [], "means": {}}
    rows = merged(kept["rows"], measured.rows)
    of_corruptions = [row for row in rows if row["kind"] == "corruption"]
    # The picture is written before the file whose rows say that there is one.
    if of_corruptions:
        writing.write_whole(path / "corruptions.png", figures.corruptions_picture(of_corruptions))
    unknown = kept.get("unknown", {}) | measured.unknown
    writing.write_json(
        file, {"rows": rows, "means": kept["means"] | measured.means} | ({"unknown": unknown} if unknown else {})
    )


def write_report_again(run: FinishedRun, dataset: Dataset) -> None:
    """Write the report of a finished run again, with what other commands have put into its workdir since."""
    write_report(
        run.path, run.result, run.records, logits=run.logits, test=dataset.test, class_names=dataset.class_names
    )


def write_report(
    path: Path,
    result: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    *,
    logits: NDArray[np.float32],
    test: LabelledImages,
    class_names: Sequence[str],
) -> None:
    """Write `report.html` and `model_card.md` from everything in a workdir.

    Args:
        path: the workdir.
        result: what `result.json` says, or will say.
        records: lines of `metrics.jsonl`.
        logits: float32 `[n, classes]`, of the test images.
        test: images and labels.
        class_names: the class names of the model.
    """
    content = Content(
        name=paths.shown(path.resolve().name),
        result=result,
        records=records,
        images=test.images,
        labels=test.labels,
        logits=logits,
        class_names=class_names,
        pictures={file.stem: file.read_bytes() for file in sorted(path.glob("*.png"))},
        **{
            part: writing.read_json(path / file)
            for part, file in (
                ("robustness", paths.ROBUSTNESS),
                ("exports", paths.EXPORTS),
                ("explanation", paths.EXPLANATION),
            )
            if (path / file).is_file()
        },
    )
    writing.write_whole(path / paths.REPORT, report_html(content).encode())
    writing.write_whole(path / paths.MODEL_CARD, model_card(content).encode())
