"""The callback that saves checkpoints in the middle of a phase."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from cifar_keras.training.checkpoints import Checkpoint, numbered, write_variables
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.phases import Phase


class SaveCheckpoints(keras.callbacks.Callback):
    """A callback that saves a checkpoint every `every` steps and at the ends of epochs, and ends a run that is asked to end.

    At the last step of an epoch it saves nothing, because validation and then the end of the epoch follow. The trainer saves the end
    of the phase.

    Args:
        save: function that takes the model, the epoch, and the number of its steps that are done.
        phase: the phase.
        every: steps of an epoch from one checkpoint to the next; 0 saves at the ends of epochs only.
        first_step: number of steps of the first epoch that are done already.
        mid_phase: the checkpoint from which the phase continues; None if the phase begins.
        strategy: the strategy of the run.
        interruption: knows whether the run is asked to end.
    """

    def __init__(
        self,
        save: Callable[[keras.Model, int, int], None],
        phase: Phase,
        *,
        every: int,
        first_step: int,
        mid_phase: Checkpoint | None,
        strategy: tf.distribute.Strategy,
        interruption: Interruption,
    ) -> None:
        super().__init__()
        self._save, self._phase, self._every, self._interruption = save, phase, every, interruption
        self._epoch, self._step, self._first_step = 0, 0, first_step
        self._mid_phase, self._strategy = mid_phase, strategy

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restore the metrics, which Keras has just reset, from the checkpoint."""
        self._epoch, self._step, self._first_step = epoch, self._first_step, 0
        if self._mid_phase is not None and self._step:
            write_variables("metrics", numbered(self.model.metrics_variables), self._strategy, self._mid_phase.arrays)
        self._mid_phase = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save a checkpoint if one is due or the run is asked to end."""
        self._step += 1
        asked = self._interruption.asked
        if self._step < self._phase.steps_per_epoch and (asked or (self._every and self._step % self._every == 0)):
            self._save(self.model, self._epoch, self._step)
        if asked:
            self._interruption.end()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """End the run if it is asked to end. When it is resumed, it repeats the steps since the last checkpoint."""
        if self._interruption.asked:
            self._interruption.end()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save a checkpoint if another epoch follows."""
        if epoch + 1 < self._phase.epochs.stop and not self.model.stop_training:
            self._save(self.model, epoch + 1, 0)
