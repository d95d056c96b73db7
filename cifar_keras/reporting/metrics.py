"""Every reported number of a classification, computed by scikit-learn from logits and labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

TOP = 5


def classification_metrics(
    logits: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    """Measure predictions against labels. Every class is listed, whether or not it occurs.

    Args:
        logits: float32 `[n, classes]`, unnormalised log probabilities; the prediction is the largest of a row.
        labels: int64 `[n]`, true classes, 0..classes - 1.
        class_names: the name of each class, at least two, all different.

    Returns:
        Plain values, ready for JSON. Rates are fractions, 0..1:
        `n` images; `loss`, the mean cross-entropy in nats, where a probability under 2.2e-16 counts as 2.2e-16; `accuracy`;
        `top5`, the share of labels among the five largest logits; `macro_precision`, `macro_recall` and `macro_f1`, plain
        means over the classes; `per_class`, of each name its `precision`, `recall`, `f1` (0 where undefined) and `support`
        (images of the class); `confusion_matrix`, counts as a list of rows, a row for each true class and a column for each
        prediction.

    Raises:
        ValueError: shapes that do not match, no images, labels out of range, or logits that are not finite.
    """
    _check(logits, labels, class_names)
    classes = np.arange(len(class_names))
    predicted = logits.argmax(axis=1)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    return {
        "n": len(labels),
        "loss": float(sklearn_metrics.log_loss(labels, softmax(logits), labels=classes)),
        "accuracy": float(sklearn_metrics.accuracy_score(labels, predicted)),
        "top5": _top_accuracy(logits, labels, classes),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "per_class": {
            name: {
                "precision": float(precision[index]),
                "recall": float(recall[index]),
                "f1": float(f1[index]),
                "support": int(support[index]),
            }
            for index, name in enumerate(class_names)
        },
        "confusion_matrix": sklearn_metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities, float64 `[n, classes]`, of finite logits `[n, classes]`; each row sums to 1."""
    # Less the largest of the row, so that exp cannot overflow; the quotient is the same.
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials: NDArray[np.float64] = np.exp(shifted)
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def _top_accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64], classes: NDArray[np.int64]) -> float:
    if len(classes) <= TOP:  # every label is among them; scikit-learn warns, and refuses two classes
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
