import numpy as np

from cifar_keras.evaluation.galleries import (
    most_confident_errors,
    most_confused_pairs,
    names_of,
    spread_over_confidence,
)

# Predictions 0, 1, 1, 2, 0, 1 with confidences 0.5, 0.7, 0.9, 0.8, 0.6, 0.9.
PROBABILITIES = np.array(
    [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2], [0.1, 0.9, 0.0]]
)
LABELS = np.array([0, 0, 0, 0, 1, 1])


def test_errors_are_sorted_by_confidence_and_limited() -> None:
    assert most_confident_errors(PROBABILITIES, LABELS, 10).tolist() == [2, 3, 1, 4]
    assert most_confident_errors(PROBABILITIES, LABELS, 2).tolist() == [2, 3]
    assert most_confident_errors(PROBABILITIES, PROBABILITIES.argmax(axis=1), 2).tolist() == []


def test_pairs_are_sorted_by_how_often_they_occur() -> None:
    pairs = most_confused_pairs(PROBABILITIES, LABELS, 10)
    assert [(pair.true, pair.predicted, pair.images.tolist()) for pair in pairs] == [
        (0, 1, [2, 1]),
        (0, 2, [3]),
        (1, 0, [4]),
    ]
    assert len(most_confused_pairs(PROBABILITIES, LABELS, 1)) == 1
    assert names_of(pairs[0], ["cat", "dog", "ship"]) == "cat taken for dog"


def test_a_spread_holds_the_first_and_the_last() -> None:
    confidences = np.array([0.1, 0.9, 0.5, 0.7, 0.3])
    assert spread_over_confidence(confidences, 3).tolist() == [1, 2, 0]
    assert spread_over_confidence(confidences, 9).tolist() == [1, 3, 2, 4, 0]
    assert spread_over_confidence(confidences[:0], 3).tolist() == []
