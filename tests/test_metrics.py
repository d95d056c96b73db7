import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.metrics import classification_metrics

NAMES = ["cat", "dog", "ship"]


def logits_of(probabilities: list[list[float]]) -> NDArray[np.float32]:
    return np.array([[math.log(value) for value in row] for row in probabilities], np.float32)


def hand_computed() -> dict[str, Any]:
    # Predictions cat, dog, dog, cat for the truth cat, cat, dog, dog; nothing is a ship.
    logits = logits_of([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    return classification_metrics(logits, np.array([0, 0, 1, 1]), NAMES)


def test_metrics_match_a_calculation_by_hand() -> None:
    metrics = hand_computed()
    assert metrics["n"] == 4
    assert metrics["accuracy"] == 0.5
    assert metrics["top5"] == 1.0
    assert metrics["confusion_matrix"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert metrics["loss"] == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.4)) / 4)
    # Squared distances from the label, over all three classes: of (0.7, 0.2, 0.1) from cat 0.09 + 0.04 + 0.01, and so on.
    assert metrics["brier"] == pytest.approx((0.14 + 0.86 + 0.06 + 0.62) / 4)
    figures = {name: metrics["per_class"]["cat"][name] for name in ("precision", "recall", "f1", "support")}
    assert figures == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert metrics["balanced_accuracy"] == 0.5  # of the classes that occur
    # A class that does not occur is listed, counts as 0, and the macro means are over three classes.
    assert metrics["per_class"]["ship"]["f1"] == metrics["per_class"]["ship"]["support"] == 0
    assert metrics["macro_precision"] == pytest.approx(1 / 3)


def test_weighted_means_count_a_class_by_its_images() -> None:
    """Three cats, of which one is taken for a dog, and one dog."""
    logits = logits_of([[0.8, 0.2], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    metrics = classification_metrics(logits, np.array([0, 0, 0, 1]), ["cat", "dog"])
    assert metrics["weighted_precision"] == pytest.approx((3 * 1 + 1 * 1 / 2) / 4)
    assert metrics["weighted_recall"] == pytest.approx((3 * 2 / 3 + 1 * 1) / 4)
    assert metrics["weighted_f1"] == pytest.approx((3 * 4 / 5 + 1 * 2 / 3) / 4)
    assert metrics["macro_recall"] == metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_keys_are_exactly_those_of_the_contract_and_json_ready() -> None:
    metrics = hand_computed()
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert list(metrics) == [
        *(
            "n",
            "loss",
            "accuracy",
            "balanced_accuracy",
            "top5",
            "brier",
            "calibration_error",
            "calibration_error_by_chance",
        ),
        *("macro_precision", "macro_recall", "macro_f1"),
        *("weighted_precision", "weighted_recall", "weighted_f1", "per_class", "confusion_matrix", "intervals"),
    ]


def test_metrics_match_plain_numpy_on_random_logits() -> None:
    generator = np.random.default_rng(7)
    n, classes = 500, 10
    labels = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    metrics = classification_metrics(logits, labels, [f"class {index}" for index in range(classes)])

    predicted = logits.argmax(axis=1)
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, predicted), 1)
    hits = matrix.diagonal()
    precision, recall = hits / matrix.sum(axis=0), hits / matrix.sum(axis=1)
    larger = (logits > logits[np.arange(n), labels][:, None]).sum(axis=1)
    wide = logits.astype(np.float64)
    loss = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(n), labels]

    assert metrics["confusion_matrix"] == matrix.tolist()
    assert metrics["accuracy"] == pytest.approx(hits.sum() / n)
    assert metrics["top5"] == pytest.approx((larger < 5).mean())
    assert metrics["loss"] == pytest.approx(loss.mean())
    assert metrics["macro_precision"] == pytest.approx(precision.mean())
    assert metrics["macro_recall"] == pytest.approx(recall.mean())
    assert metrics["macro_f1"] == pytest.approx((2 * precision * recall / (precision + recall)).mean())
    for index, values in enumerate(metrics["per_class"].values()):
        assert values["precision"] == pytest.approx(precision[index])
        assert values["recall"] == pytest.approx(recall[index])
        assert values["support"] == (labels == index).sum()


def test_softmax_is_float64_sums_to_one_and_does_not_overflow() -> None:
    logits = np.array([[1000.0, 999.0], [-1000.0, -1000.0], [0.0, math.log(3)]], np.float32)
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-15)
    np.testing.assert_allclose(
        probabilities, [[1 / (1 + 1 / math.e), 1 / (1 + math.e)], [0.5, 0.5], [0.25, 0.75]], 1e-6
    )


def test_a_certain_mistake_has_a_finite_loss() -> None:
    metrics = classification_metrics(np.array([[5000.0, 0.0]], np.float32), np.array([1]), ["cat", "dog"])
    assert 30 < metrics["loss"] < 40
    assert metrics["top5"] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = np.zeros((4, 3), np.float32)
    logits[2, 1] = bad
    with pytest.raises(ValueError, match="Received: NaN or infinity in 1 of 4 rows"):
        classification_metrics(logits, np.zeros(4, np.int64), NAMES)


@pytest.mark.parametrize(
    ("shape", "labels", "names"),
    [
        ((4, 3), [0, 1, 2], NAMES),
        ((4, 2), [0, 1, 1, 0], NAMES),
        ((3,), [0, 1, 2], NAMES),
        ((0, 3), [], NAMES),
        ((2, 3), [0, 3], NAMES),
        ((2, 3), [-1, 0], NAMES),
        ((2, 3), [0.0, 1.0], NAMES),
        ((2, 3), [0, 1], ["cat", "cat", "dog"]),
        ((2, 1), [0, 0], ["cat"]),
    ],
)
def test_what_does_not_fit_together_is_refused(shape: tuple[int, ...], labels: list[float], names: list[str]) -> None:
    with pytest.raises(ValueError, match="Received: "):
        classification_metrics(np.zeros(shape, np.float32), np.array(labels), names)
