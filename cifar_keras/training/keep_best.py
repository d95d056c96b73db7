"""Stop a phase early, and go back to the best epoch."""

from typing import Any

import keras
from numpy.typing import NDArray

from cifar_keras.config import ChooseBy
from cifar_keras.training.checkpoints import Checkpoint


class KeepBest(keras.callbacks.Callback):
    """Early stopping that remembers the best epoch of the whole run, so that a phase can end by going back to it.

    An epoch is better when a metric of its validation is better, or equal with a lower cross-entropy. If the metric is the cross-entropy
    itself, equal epochs are decided by the accuracy. Keras's own `EarlyStopping` forgets its best value at each `fit`, so it would keep
    a finetune phase that only does harm.

    Args:
        classifier: the classifier of the run.
        choose_by: the metric; the log has it as `val_METRIC`.
    """

    def __init__(self, classifier: keras.Model, choose_by: ChooseBy = ChooseBy.ACCURACY) -> None:
        super().__init__()
        # The whole classifier, although a phase may fit a part that shares its variables.
        self._classifier, self._choose_by = classifier, choose_by
        # (the metric, -cross-entropy), or (-cross-entropy, accuracy): more is better
        self.best: tuple[float, float] | None = None
        self.best_weights: list[NDArray[Any]] = []
        self.waited = 0  # epochs of this phase since the best, or since it began
        self._patience, self._first_epoch = 0, 0

    def state(self) -> Checkpoint:
        """Return the state that a later process needs to continue."""
        values = {"best": self.best, "waited": self.waited}
        return Checkpoint(values, {f"best/{number}": array for number, array in enumerate(self.best_weights)})

    def restore(self, state: Checkpoint) -> None:
        """Restore what `state` returned. To continue a phase, call `begin_phase` with the restored `waited`."""
        self.best = None if state.values["best"] is None else tuple(state.values["best"])
        self.waited = state.values["waited"]
        count = sum(name.startswith("best/") for name in state.arrays)
        self.best_weights = [state.arrays[f"best/{number}"] for number in range(count)]

    def begin_phase(self, patience: int, *, first_epoch: int = 0, waited: int = 0) -> None:
        """Begin or continue a phase.

        Args:
            patience: epochs without a better one after which training stops; 0 never stops.
            first_epoch: epochs before this one do not count.
            waited: epochs of the phase that were trained since the best one.
        """
        self._patience, self._first_epoch, self.waited = patience, first_epoch, waited

    def forget(self) -> None:
        """Forget the best epoch so far."""
        self.best, self.best_weights = None, []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the weights of a better epoch. Stop training when patience is over."""
        if epoch < self._first_epoch:
            return
        value = self._value_of(logs or {})
        if self.best is None or value > self.best:
            self.best, self.waited = value, 0
            self.best_weights = self._classifier.get_weights()
            return
        self.waited += 1
        if self._patience and self.waited >= self._patience:
            self.model.stop_training = True

    def _value_of(self, logs: dict[str, Any]) -> tuple[float, float]:
        negative_cross_entropy = -float(logs["val_cross_entropy"])
        if self._choose_by is ChooseBy.CROSS_ENTROPY:
            return negative_cross_entropy, float(logs["val_accuracy"])
        return float(logs[f"val_{self._choose_by}"]), negative_cross_entropy

    def go_back(self) -> None:
        """Set the classifier to the weights of the best epoch.

        The classifier stays as it is if training ended before any epoch could be the best.
        """
        if self.best is not None:
            self._classifier.set_weights(self.best_weights)
