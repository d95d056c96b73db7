"""Compute every reported number of a classification from logits and labels, with its uncertainty."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from cifar_keras.evaluation.calibration import calibration_error_by_chance, expected_calibration_error, softmax
from cifar_keras.evaluation.uncertainty import bootstrap_intervals, resampled_metrics

TOP = 5
RATES = ("precision", "recall", "f1")
UNLIMITED = ("loss", "brier")  # all other metrics are at most 1
# A split is imbalanced if its largest class has more than this many times the images of its smallest. Below that, the weighted mean of a
# rate is within a tenth of the rate's spread over the classes of the plain mean.
BALANCED_RATIO = 1.1


def classification_metrics(
    logits: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Return the metrics of predictions, as plain values for JSON. Every class is listed, whether or not it occurs.

    Rates are fractions, 0..1. The keys are:

    - `n`: the number of images; `accuracy`; `top5`: the fraction of labels among the five largest logits.
    - `balanced_accuracy`: the mean recall of the classes that occur (scikit-learn). It is `macro_recall` if all classes occur.
    - `loss`: the mean cross-entropy in nats, where a probability under 2.2e-16 counts as 2.2e-16.
    - `brier`: the squared distance between probabilities and label, summed over the classes, as the mean over the images, 0..2
      (Brier, 1950, equation 2).
    - `calibration_error`: that of `calibration.expected_calibration_error`; `calibration_error_by_chance`: the mean error that
      probabilities show on so many images if all of them are correct.
    - `macro_precision`, `macro_recall`, `macro_f1`: plain means over the classes; `weighted_...`: means weighted by the images of a class.
    - `per_class`: by name, its `precision`, `recall`, `f1` (0 where undefined), `support` (images of the class) and `intervals`.
    - `confusion_matrix`: counts as a list of rows, with a row for each true class and a column for each prediction.
    - `intervals`: of each metric with a confidence of 95 %, as [low, high]. The interval of the calibration error begins at 0 where
      chance can show as much, and always holds the error.

    Args:
        logits: float32 `[n, classes]`, unnormalised log probabilities; the prediction is the largest of a row.
        labels: int64 `[n]`, true classes, 0..classes - 1.
        class_names: the name of each class, at least two, all different.
        seed: seed of the resamples that the intervals come from.

    Raises:
        ValueError: shapes that do not match, no images, labels out of range, or logits that are not finite.
    """
    _check(logits, labels, class_names)
    classes = np.arange(len(class_names))
    probabilities, predicted = softmax(logits), logits.argmax(axis=1)
    intervals, calibration = _intervals(probabilities, labels, seed), _calibration(probabilities, labels, seed)
    intervals["calibration_error"] = calibration.interval(*intervals["calibration_error"])
    brier = sklearn_metrics.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    return {
        "n": len(labels),
        "loss": float(sklearn_metrics.log_loss(labels, probabilities, labels=classes)),
        "accuracy": float(sklearn_metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": _balanced_accuracy(labels, predicted),
        "top5": _top_accuracy(logits, labels, classes),
        "brier": float(brier),
        "calibration_error": calibration.error,
        "calibration_error_by_chance": calibration.by_chance,
        **{f"macro_{rate}": value for rate, value in _rates(labels, predicted, classes, "macro").items()},
        **{f"weighted_{rate}": value for rate, value in _rates(labels, predicted, classes, "weighted").items()},
        "per_class": _per_class(labels, predicted, class_names, intervals),
        "confusion_matrix": sklearn_metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
        "intervals": intervals,
    }


def is_imbalanced(support: Iterable[int]) -> bool:
    """Return whether some class has more than `BALANCED_RATIO` times as many images as another. Classes without images do not count.

    If not, weighted means over the classes are nearly plain means, and balanced accuracy is nearly accuracy.

    Examples:
        >>> is_imbalanced([1000, 1000]), is_imbalanced([95, 5])
        (False, True)
    """
    occurring = [images for images in support if images]
    return max(occurring, default=1) > BALANCED_RATIO * min(occurring, default=1)


def _balanced_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    # `balanced_accuracy_score` is the same, but warns about predictions of classes that do not occur.
    return float(sklearn_metrics.recall_score(labels, predicted, labels=np.unique(labels), average="macro"))


def _intervals(probabilities: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> dict[str, list[float]]:
    found = bootstrap_intervals(resampled_metrics(probabilities, labels, top=TOP), len(labels), seed=seed)
    return {name: [low, high if name in UNLIMITED else min(1.0, high)] for name, (low, high) in found.items()}


class _Calibration(NamedTuple):
    error: float
    by_chance: float
    most_by_chance: float

    def interval(self, low: float, high: float) -> list[float]:
        """Return the bootstrap's interval, widened so that it holds the error, and 0 where chance can show as much.

        If all probabilities are correct, the lower end is often above 0. Every resample adds to an error, so the upper end of a small
        error's interval can be below the error.
        """
        return [0.0 if self.error <= self.most_by_chance else min(low, self.error), max(high, self.error)]


def _calibration(probabilities: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> _Calibration:
    error = expected_calibration_error(probabilities, labels)
    return _Calibration(error, *calibration_error_by_chance(probabilities, seed=seed))


def _rates(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: NDArray[np.int64], average: str
) -> dict[str, float]:
    values = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, average=average, zero_division=0
    )
    return {rate: float(value) for rate, value in zip(RATES, values, strict=False)}


def _per_class(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    class_names: Sequence[str],
    intervals: dict[str, list[float]],
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each class. Their intervals are taken out of `intervals`."""
    *rates, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(class_names)), average=None, zero_division=0
    )
    return {
        name: {
            **{rate: float(values[index]) for rate, values in zip(RATES, rates, strict=True)},
            "support": int(support[index]),
            "intervals": {rate: intervals.pop(f"{rate}/{index}") for rate in RATES},
        }
        for index, name in enumerate(class_names)
    }


def _top_accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64], classes: NDArray[np.int64]) -> float:
    # Every label is among so few classes. scikit-learn would warn, and refuses two classes.
    if len(classes) <= TOP:
        return 1.0
    return float(sklearn_metrics.top_k_accuracy_score(labels, logits, k=TOP, labels=classes))


def _check(logits: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str]) -> None:
    classes = len(class_names)
    if classes < 2 or len(set(class_names)) != classes:
        raise ValueError(f"class_names have to be at least two different names. Received: {list(class_names)}")
    if labels.ndim != 1 or logits.shape != (len(labels), classes):
        raise ValueError(
            f"logits have to be [n, {classes}] and labels [n]. Received: shapes {logits.shape} and {labels.shape}"
        )
    if len(labels) == 0:
        raise ValueError("there is nothing to measure without images. Received: 0 labels")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels have to be integers from 0 to {classes - 1}. "
            f"Received: {labels.dtype}, {labels.min()} to {labels.max()}"
        )
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ValueError(f"logits have to be finite. Received: NaN or infinity in {broken} of {len(labels)} rows")
