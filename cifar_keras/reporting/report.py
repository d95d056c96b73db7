"""Make `report.html` and `model_card.md`: the results of a run, each in one file that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from cifar_keras.config import ChooseBy
from cifar_keras.data.datasets import row_of
from cifar_keras.data.types import Images
from cifar_keras.evaluation.calibration import BINS, reliability, softmax
from cifar_keras.evaluation.galleries import (
    most_confident_errors,
    most_confused_classes,
    most_confused_pairs,
    names_of,
    spread_over_confidence,
)
from cifar_keras.evaluation.metrics import RATES, is_imbalanced
from cifar_keras.evaluation.selective import at_coverage, coverage_curve, risk_coverage_area
from cifar_keras.exporting.formats import FORMATS
from cifar_keras.reporting import markdown
from cifar_keras.reporting.figures import DRAWN_CLASSES, image_png
from cifar_keras.reporting.tables import in_words, lowest_f1

ERRORS, PAIRS, IMAGES_OF_A_PAIR, RIGHT = 32, 6, 6, 16  # images that are shown
# At which the report lists the accuracy of the most confident predictions.
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.25)
PROBABLE = 5  # classes that an image lists
# At most; `result.json` has all classes.
LISTED_CLASSES, LISTED_CLASSES_OF_A_CARD, NAMED_CLASSES = 100, 20, 20


class Content(NamedTuple):
    """The content of a report."""

    name: str  # of the run
    result: Mapping[str, Any]  # what result.json says
    records: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
    images: Images  # test images [n, height, width, 3]
    labels: NDArray[np.int64]  # [n]
    logits: NDArray[np.float32]  # [n, classes], of the SavedModel
    class_names: Sequence[str]
    pictures: Mapping[str, bytes]  # PNG files by their names in the workdir, without ".png"
    robustness: Mapping[str, Any] | None = None  # what further_evaluation.json says, where there is one
    exports: Mapping[str, Any] | None = None  # exports.json
    explanation: Mapping[str, Any] | None = None  # explanation.json


class Shown(NamedTuple):
    """An image of a gallery."""

    uri: str
    true: str
    predicted: str
    confidence: float
    probable: list[tuple[str, float]]  # the most probable classes, the largest first


def report_html(content: Content) -> str:
    """Return the text of `report.html`. No script, style or picture in it comes from elsewhere."""
    temperature = content.result["calibration"]["temperature"]
    probabilities = softmax(content.logits, temperature)
    counts = np.asarray(content.result["test"]["confusion_matrix"])
    confused = most_confused_classes(counts, DRAWN_CLASSES)
    return _template("report.html.j2").render(
        name=content.name,
        result=content.result,
        class_names=content.class_names,
        pictures={name: _uri(png) for name, png in content.pictures.items()},
        epochs=[record for record in content.records if "validation_accuracy" in record],
        bins=_bins(content),
        selective=_selective(content, probabilities),
        galleries=_galleries(content, probabilities),
        robustness=content.robustness,
        exports=content.exports,
        formats=FORMATS,
        image_sides=content.images.shape[1:3],
        explanation=content.explanation,
        dataset=row_of(content.result["config"]),
        per_class=lowest_f1(content.result["test"]["per_class"], LISTED_CLASSES),
        imbalanced=_is_imbalanced(content),
        rates=RATES,
        choose_by=_other_choice(content),
        confused=[content.class_names[index] for index in confused],
        confusions=counts[np.ix_(confused, confused)].tolist(),
    )


def model_card(content: Content) -> str:
    """Return the text of `model_card.md`: what the model is, what it was trained and measured on, and what it is not for."""
    return _template("model_card.md.j2").render(
        name=content.name,
        result=content.result,
        class_names=content.class_names,
        robustness=content.robustness,
        exports=content.exports,
        image_sides=content.images.shape[1:3],
        dataset=row_of(content.result["config"]),
        per_class=lowest_f1(content.result["test"]["per_class"], LISTED_CLASSES_OF_A_CARD),
        imbalanced=_is_imbalanced(content),
        rates=RATES,
        choose_by=_other_choice(content),
        named=content.class_names[:NAMED_CLASSES],
    )


def _is_imbalanced(content: Content) -> bool:
    return is_imbalanced(values["support"] for values in content.result["test"]["per_class"].values())


def _other_choice(content: Content) -> str:
    """Return the metric that chose the best epoch if it was not the accuracy, and "" if it was, as in older runs."""
    chosen = content.result["config"].get("choose_by", str(ChooseBy.ACCURACY))
    return "" if chosen == ChooseBy.ACCURACY else str(chosen)


def short_commit(commit: str) -> str:
    """Return the first seven digits of what `environment.source_commit` returned, and "+changes" if it names changes.

    Examples:
        >>> short_commit("0123456789abcdef"), short_commit("0123456789abcdef+changes")
        ('0123456', '0123456+changes')
    """
    digits, changes, _ = commit.partition("+changes")
    return digits[:7] + changes


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar_keras.reporting"),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    space = "\N{NO-BREAK SPACE}" if name.endswith(".html.j2") else " "
    environment.filters["percent"] = lambda fraction, digits=2: f"{100 * fraction:.{digits}f}{space}%"
    environment.filters["short_commit"] = short_commit
    environment.filters["text"], environment.filters["code"] = markdown.text, markdown.code
    environment.filters["words"] = in_words
    environment.filters["thousands"] = lambda count: f"{count:,}"
    return environment.get_template(name)


def _galleries(content: Content, probabilities: NDArray[np.float64]) -> list[tuple[str, list[Shown]]]:
    """Return the galleries, each after its heading."""
    right = np.flatnonzero(probabilities.argmax(axis=1) == content.labels)
    sample = right[spread_over_confidence(probabilities[right].max(axis=1), RIGHT)]
    pairs = most_confused_pairs(probabilities, content.labels, PAIRS)
    chosen = [
        ("Most confident errors", most_confident_errors(probabilities, content.labels, ERRORS)),
        *(
            (f"{names_of(pair, content.class_names)}: {len(pair.images)} times", pair.images[:IMAGES_OF_A_PAIR])
            for pair in pairs
        ),
        ("Right, from the most to the least confident", sample),
    ]
    return [(heading, [_shown(content, probabilities, index) for index in images]) for heading, images in chosen]


def _shown(content: Content, probabilities: NDArray[np.float64], index: np.int64) -> Shown:
    row = probabilities[index]
    order = np.argsort(-row, kind="stable")[:PROBABLE]
    return Shown(
        uri=image_uri(content.images[index]),
        true=content.class_names[content.labels[index]],
        predicted=content.class_names[order[0]],
        confidence=float(row[order[0]]),
        probable=[(content.class_names[place], float(row[place])) for place in order],
    )


def _bins(content: Content) -> list[dict[str, Any]]:
    """Return the rows of the reliability diagram without its empty bins, as served and without temperature."""
    return [
        {
            "probabilities": name,
            "from": place / BINS,
            "to": (place + 1) / BINS,
            "images": int(diagram.images[place]),
            "confidence": float(diagram.confidence[place]),
            "accuracy": float(diagram.accuracy[place]),
        }
        for name, temperature in (
            ("as served", content.result["calibration"]["temperature"]),
            ("without temperature", 1.0),
        )
        for diagram in [reliability(softmax(content.logits, temperature), content.labels)]
        for place in np.flatnonzero(diagram.images).tolist()
    ]


def _selective(content: Content, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    """Return the accuracy of the most confident predictions at some coverages, and the area under the curve of risk over coverage."""
    curve = coverage_curve(probabilities, content.labels)
    # Equal confidences are answered together, so that two of the coverages may be the same.
    found = dict.fromkeys(at_coverage(curve, coverage) for coverage in COVERAGES)
    rows = [
        {
            "coverage": each.answered / each.images,
            "images": each.answered,
            "threshold": each.probability,
            "accuracy": each.right / each.answered,
            "intervals": {"accuracy": each.interval},
        }
        for each in found
    ]
    return {"area": risk_coverage_area(curve), "rows": rows}


def image_uri(image: NDArray[np.uint8]) -> str:
    """Return an image, uint8 `[height, width, 3]`, as a `data:` address of a PNG file."""
    return _uri(image_png(image))


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
