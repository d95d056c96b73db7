"""Write what people look at in a workdir, from numbers: pictures, the report and the model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_keras.config import CORRUPTION_SUITE
from cifar_keras.data.types import Dataset, LabelledImages
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.robustness import Robustness, merged
from cifar_keras.files import paths, writing
from cifar_keras.files.finished_run import FinishedRun
from cifar_keras.reporting import figures
from cifar_keras.reporting.report import Content, model_card, report_html
from cifar_keras.reporting.tables import robustness_table


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
        "confusion_matrix": figures.confusion_matrix_picture(metrics["confusion_matrix"], class_names),
        "predictions": figures.predictions_picture(test.images, test.labels, probabilities, class_names),
    }


def errors_picture(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    maps: Sequence[tuple[str, NDArray[np.float32]]],
    class_names: Sequence[str],
) -> bytes:
    """Return a picture of errors and of the parts of the images that they come from.

    Args:
        images: uint8 `[n, height, width, 3]`, classified wrongly.
        labels: int64 `[n]`, the true classes.
        probabilities: float64 `[n, classes]`, the probabilities of the model.
        maps: what `explaining_maps` returned for the images.
        class_names: the class names of the model.

    Returns:
        A PNG file.
    """
    titles = [
        f"{class_names[row.argmax()]} {row.max():.2f},\nis {class_names[label]}"
        for row, label in zip(probabilities, labels, strict=True)
    ]
    return figures.attribution_picture(images, maps, titles)


def keep_robustness(measured: Robustness, path: Path) -> None:
    """Print the rows of robustness, merge them into the rows of a workdir, and draw the corruptions."""
    if not measured.rows:
        return
    print(robustness_table(measured.rows))
    if CORRUPTION_SUITE in measured.means:
        print(f"The corruptions are as strong as those of {measured.means[CORRUPTION_SUITE]['strengths']}.")
    file = path / paths.ROBUSTNESS
    kept = writing.read_json(file) if file.is_file() else {"rows": [], "means": {}}
    rows = merged(kept["rows"], measured.rows)
    of_corruptions = [row for row in rows if row["kind"] == "corruption"]
    # The picture is written before the file whose rows say that there is one.
    if of_corruptions:
        writing.write_whole(path / "corruptions.png", figures.corruptions_picture(of_corruptions))
    writing.write_json(file, {"rows": rows, "means": kept["means"] | measured.means})


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
