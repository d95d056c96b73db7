import keras
import numpy as np

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
