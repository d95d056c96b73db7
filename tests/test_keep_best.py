import keras
import numpy as np
import pytest

from cifar_keras.config import ChooseBy
from cifar_keras.training.keep_best import KeepBest


def linear_model() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


def test_the_best_epoch_of_both_phases_comes_back() -> None:
    model = linear_model()
    keep = KeepBest(model)
    keep.set_model(model)

    def epoch(number: int, accuracy: float, loss: float) -> None:
        model.layers[0].kernel.assign(np.full((4, 2), float(number)))
        keep.on_epoch_end(number, {"val_accuracy": accuracy, "val_cross_entropy": loss})

    keep.begin_phase(0)
    epoch(0, 0.5, 1.0)
    epoch(1, 0.7, 1.0)
    epoch(2, 0.6, 0.1)
    keep.go_back()
    assert float(model.layers[0].kernel[0, 0]) == 1
    keep.begin_phase(0)  # the next phase is never better, but for one equal accuracy at a lower loss
    epoch(3, 0.6, 0.2)
    epoch(4, 0.7, 0.9)
    epoch(5, 0.7, 0.95)
    keep.go_back()
    assert float(model.layers[0].kernel[0, 0]) == 4
    assert keep.best == (0.7, -0.9)


def test_patience_ends_a_phase_and_starts_anew_in_the_next() -> None:
    model = linear_model()
    keep = KeepBest(model)
    keep.set_model(model)
    for _ in range(2):
        keep.begin_phase(2)
        model.stop_training = False
        stopped = []
        for number in range(4):
            keep.on_epoch_end(number, {"val_accuracy": 0.5 if number == 0 else 0.4, "val_cross_entropy": 1.0})
            stopped.append(bool(model.stop_training))
        assert stopped[0] is False
        assert stopped[-1] is True
    assert keep.best == (0.5, -1.0)


def test_what_a_phase_does_not_fit_comes_back_too() -> None:
    classifier, part = linear_model(), linear_model()
    keep = KeepBest(classifier)
    keep.set_model(part)
    classifier.layers[0].kernel.assign(np.ones((4, 2)))
    keep.on_epoch_end(0, {"val_accuracy": 0.5, "val_cross_entropy": 1.0})
    classifier.layers[0].kernel.assign(np.zeros((4, 2)))
    keep.go_back()
    assert np.array_equal(classifier.layers[0].kernel, np.ones((4, 2)))


def test_where_no_epoch_can_be_the_best_the_classifier_stays_as_it_is() -> None:
    """A callback of somebody's own ends a phase in its first stage."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    before = model.get_weights()
    keep = KeepBest(model)
    keep.begin_phase(0, first_epoch=3)
    keep.on_epoch_end(1, {"val_accuracy": 0.5, "val_cross_entropy": 1.0})
    keep.go_back()
    assert all(np.array_equal(left, right) for left, right in zip(model.get_weights(), before, strict=True))


EPOCHS = {
    "val_accuracy": [0.95, 0.9, 0.9, 0.95],
    "val_balanced_accuracy": [0.5, 0.7, 0.7, 0.6],
    "val_macro_f1": [0.4, 0.6, 0.5, 0.65],
    "val_cross_entropy": [0.3, 0.4, 0.35, 0.3],
}


@pytest.mark.parametrize(
    ("choose_by", "best", "value"),
    [
        (ChooseBy.ACCURACY, 0, (0.95, -0.3)),
        (ChooseBy.BALANCED_ACCURACY, 2, (0.7, -0.35)),  # equal to epoch 1, at a lower cross-entropy
        (ChooseBy.MACRO_F1, 3, (0.65, -0.3)),
        (ChooseBy.CROSS_ENTROPY, 0, (-0.3, 0.95)),  # the first of two that are equal in both
    ],
)
def test_the_metric_that_is_asked_for_chooses(choose_by: ChooseBy, best: int, value: tuple[float, float]) -> None:
    model = linear_model()
    keep = KeepBest(model, choose_by)
    keep.set_model(model)
    measured = {"val_accuracy", "val_cross_entropy", f"val_{choose_by}"}
    keep.begin_phase(0)
    for number in range(4):
        model.layers[0].kernel.assign(np.full((4, 2), float(number)))
        keep.on_epoch_end(number, {name: values[number] for name, values in EPOCHS.items() if name in measured})
    keep.go_back()
    assert float(model.layers[0].kernel[0, 0]) == best
    assert keep.best == value


def test_patience_watches_the_same_metric() -> None:
    model = linear_model()
    keep = KeepBest(model, ChooseBy.CROSS_ENTROPY)
    keep.set_model(model)
    keep.begin_phase(2)
    model.stop_training = False
    for number, cross_entropy in enumerate([0.5, 0.4, 0.6, 0.5]):
        assert not model.stop_training
        keep.on_epoch_end(number, {"val_accuracy": number / 4, "val_cross_entropy": cross_entropy})
    assert model.stop_training
