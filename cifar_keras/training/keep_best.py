"""Early stopping, and going back to the best epoch."""

import math
from typing import Any

import keras


class KeepBest(keras.callbacks.Callback):
    """Early stopping that remembers the best epoch of the whole run, and goes back to it when a phase ends.

    An epoch is better when its validation accuracy is higher, or equal with a lower cross-entropy. keras.callbacks.
    EarlyStopping forgets its best value at each `fit`, so a finetune phase that only does harm would be kept.
    """

    def __init__(self, classifier: keras.Model) -> None:
        super().__init__()
        self._classifier = classifier  # whole, although a phase may fit a part that shares its variables
        self.best: tuple[float, float] = (-1.0, -math.inf)  # (accuracy, -cross-entropy)
        self.patience = 0  # epochs; 0 never stops
        self._best_weights: list[Any] = []
        self._waited = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Give the new phase its whole patience."""
        self._waited = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the weights of a better epoch; stop when patience is over."""
        figures = logs or {}
        value = (float(figures["val_accuracy"]), -float(figures["val_cross_entropy"]))
        if value > self.best:
            self.best, self._waited = value, 0
            self._best_weights = self._classifier.get_weights()
            return
        self._waited += 1
        if self.patience and self._waited >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Go back to the best epoch."""
        self._classifier.set_weights(self._best_weights)
