import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from cifar_keras.config import ChooseBy
from cifar_keras.training.macro_metrics import BalancedAccuracy, MacroF1, macro_metrics


@pytest.mark.parametrize("classes", [2, 10])
def test_over_all_batches_they_are_scikit_learns(classes: int) -> None:
    """Every batch has another mix of classes, and none has the last one, which is predicted all the same."""
    generator = np.random.default_rng(classes)
    labels = np.sort(generator.integers(0, max(1, classes - 1), 90))
    logits = generator.normal(size=(90, classes)).astype(np.float32)
    logits[np.arange(90), labels] += 1
    # Scores of exactly 0 are predictions too.
    logits[:9] = -np.eye(classes, dtype=np.float32)[(labels[:9] + 1) % classes] * (np.arange(classes) != labels[0])
    found = [BalancedAccuracy("balanced_accuracy", classes), MacroF1("macro_f1", classes)]
    for metric in found:
        metric.update_state(np.eye(classes)[labels[:3]], -logits[:3])
        metric.reset_state()
        for start in range(0, 90, 40):
            metric.update_state(np.eye(classes)[labels[start : start + 40]], logits[start : start + 40])
    predicted = logits.argmax(axis=1)
    # Of the classes that occur, as `balanced_accuracy_score`, which warns here.
    recalls = sklearn_metrics.recall_score(labels, predicted, labels=np.unique(labels), average="macro")
    f1 = sklearn_metrics.f1_score(labels, predicted, labels=range(classes), average="macro", zero_division=0)
    assert [float(metric.result()) for metric in found] == pytest.approx([recalls, f1], rel=1e-6)


def test_nothing_was_right_before_the_first_batch() -> None:
    assert float(BalancedAccuracy("a", 3).result()) == float(MacroF1("b", 3).result()) == 0


def test_an_epoch_measures_only_what_chooses() -> None:
    measured = {choose_by: [metric.name for metric in macro_metrics(choose_by, 3)] for choose_by in ChooseBy}
    assert measured == {
        "accuracy": [],
        "balanced_accuracy": ["balanced_accuracy"],
        "macro_f1": ["macro_f1"],
        "cross_entropy": [],
    }
