"""Through the phases of a run, from its beginning or from any moment at which its state was saved."""

import dataclasses
import errno
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cifar_keras.config import Divergence, FinetuneConfig, RunConfig, to_values
from cifar_keras.data.pipeline import PARALLEL_CALLS, evaluation_batches, measure_speed, training_batches
from cifar_keras.errors import DivergedError, UserError
from cifar_keras.files import environment
from cifar_keras.training.checkpoints import Checkpoints, State, read_variables, write_variables
from cifar_keras.training.compute import kernel_gradients, set_kernel_gradients
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.keep_best import KeepBest
from cifar_keras.training.phases import Phase, compile_phase, fit_phase
from cifar_keras.training.pruning import Prune, first_sparse_epoch
from cifar_keras.training.setup import RunSetup
from cifar_keras.training.stopwatch import Stopwatch
from cifar_keras.training.tasks import Task, make_task
from cifar_keras.training.tracking import LogPhase, RunLog, TellProgress

PIPELINE_SHARE = 0.5  # of what the pipeline gives alone: from there on a model that shares its cores waits for it
ROLLBACKS = 3  # in a run; what is not finite at an eighth of the rate does not get better
ROLLBACK_FACTOR = 0.5  # of the learning rate, at each


class PhaseSummary(NamedTuple):
    """How a phase was computed. `result.json` holds it."""

    images_per_second: float | None  # of training steps; with cached features, of the whole phase
    pipeline_images_per_second: float | None  # of the input pipeline alone
    cached_features: bool
    kernel_gradients_by_matmul: int  # convolutions


class Position(NamedTuple):
    """Where a run is."""

    phase: int = 0  # its place in the list of phases; their number where all are done
    epoch: int = 0  # counted on through the phases
    step: int = 0  # steps of this epoch that are done


class Trainer:
    """Trains the classifier of a run.

    Args:
        config: of the run.
        setup: what it trains with.
        log: of the run.
        watch: the run's; it gets the minutes of each phase.
        checkpoints: where its state is saved.
        interruption: asks it to end.
        callbacks: called in `fit` behind the run's own.
    """

    def __init__(
        self,
        config: RunConfig,
        setup: RunSetup,
        *,
        log: RunLog,
        watch: Stopwatch,
        checkpoints: Checkpoints,
        interruption: Interruption,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        self._config, self._setup, self._log, self._watch = config, setup, log, watch
        self._checkpoints, self._interruption, self._callbacks = checkpoints, interruption, callbacks
        self._keep_best = KeepBest(setup.classifier)
        self._position = Position()
        self._rate_share = 1.0  # of the rates that are asked for
        self.saving = {"saved": 0, "minutes": 0.0}  # of the states
        self.summaries: dict[str, PhaseSummary] = {}
        self.rollbacks: list[dict[str, Any]] = []

    def train(self, state: State | None = None) -> None:
        """Go through the phases that are left, and leave the classifier at its best epoch.

        Args:
            state: where the run stopped; None begins it.

        Raises:
            UserError: the loss diverged, or the run began on another number of devices.
            OSError: the workdir cannot be written any more.
            InterruptedRunError: a signal asked the run to end. Its state is saved.
        """
        if state is None:
            self._save(None)
        else:
            self._check_devices(state)
            self._watch.add(state.values["minutes"])
            if (before := state.values["versions"]) != environment.versions():
                print(f"warning: the run began with other versions, so its bits can differ: {before}", file=sys.stderr)
            self._restore(state)
        while self._position.phase < len(self._setup.phases):
            phase = self._setup.phases[self._position.phase]
            try:
                with self._watch.time(phase.name):
                    self._train_phase(phase, state)
                state = None
            except DivergedError as error:
                state = self._roll_back(phase, error)
            if self._interruption.asked:  # after the phase's last step; its end is saved
                self._interruption.end()

    def history(self) -> dict[str, Any]:
        """Return what `result.json` says of the training."""
        return {
            "compute_dtype": self._setup.compute_dtype,
            "phases": {name: summary._asdict() for name, summary in self.summaries.items()},
            "rollbacks": self.rollbacks,
            "states": self.saving,
        }

    def _check_devices(self, state: State) -> None:
        before, now = state.values["replicas"], self._setup.strategy.num_replicas_in_sync
        if before != now:  # whose shares of a batch, and sums of metrics, are others
            raise UserError(
                f"--resume: the run began on {before} devices and has to go on there. Received: {now} devices"
            )

    def _train_phase(self, phase: Phase, state: State | None) -> None:
        """Train a phase from its beginning, or from a state within it."""
        started, steps_before = time.monotonic(), self._log.step
        within = state if state is not None and state.values["within"] is not None else None
        rate = self._rate_share * phase.config.learning_rate
        phase = phase._replace(config=dataclasses.replace(phase.config, learning_rate=rate))
        task = make_task(self._config, self._setup, phase)
        compile_phase(
            task.model,
            phase,
            self._setup.strategy,
            compute_dtype=self._setup.compute_dtype,
            distillation=self._setup.distillation,
        )
        self._begin_keeping(phase)
        if within is not None:
            self._restore_within(task.model, within)
        logger, pipeline_speed = self._fit(phase, task, within)
        self._keep_best.go_back()
        speed = logger.images_per_second
        if task.cached:  # the features are learned from in no time; what counts is their making
            images = (self._log.step - steps_before) * self._config.data.global_batch_size
            speed = images / (time.monotonic() - started)
        elif speed and pipeline_speed and speed > PIPELINE_SHARE * pipeline_speed:
            print(
                f"warning: the {phase.name} phase waited for data: the input pipeline alone gives {pipeline_speed:,.0f} images/s, "
                f"and training went at {speed:,.0f}",
                file=sys.stderr,
            )
        by_matmul = list(kernel_gradients(task.model).values()).count("matmul")
        self.summaries[phase.name] = PhaseSummary(speed, pipeline_speed, task.cached, by_matmul)
        self._position = Position(self._position.phase + 1, phase.first_epoch + phase.config.epochs)
        self._rate_share = 1.0
        self._save(None)

    def _begin_keeping(self, phase: Phase) -> None:
        """Say which epochs can be what ships: in a phase that prunes, those at whose end all is pruned that shall be."""
        sparse = isinstance(phase.config, FinetuneConfig) and phase.config.sparsity > 0
        first_epoch = first_sparse_epoch(phase) if sparse else 0
        self._keep_best.begin_phase(phase.config.early_stopping_patience, first_epoch=first_epoch)
        if sparse and self._position.epoch <= first_epoch:
            self._keep_best.forget()

    def _fit(self, phase: Phase, task: Task, within: State | None) -> tuple[LogPhase, float | None]:
        batch_size = self._config.data.global_batch_size
        epoch, step = (self._position.epoch, self._position.step) if within else (phase.first_epoch, 0)
        batches = training_batches(
            task.train,
            global_batch_size=batch_size,
            steps_per_epoch=phase.steps_per_epoch,
            seed=self._config.seed,
            first_epoch=epoch,
            epochs=phase.first_epoch + phase.config.epochs - epoch,
            change=task.change,
            first_step=step,
            parallel_calls=None if self._config.deterministic else PARALLEL_CALLS,
        )
        pipeline_speed = measure_speed(batches)
        logger = LogPhase(self._log, phase, batch_size, first_step=step)
        saver = SaveState(
            self._save_within,
            phase,
            every=self._config.checkpoint.checkpoint_every_steps,
            first_step=step,
            within=within,
            strategy=self._setup.strategy,
            interruption=self._interruption,
        )
        validation_batches = evaluation_batches(task.validation, global_batch_size=batch_size)
        callbacks: list[keras.callbacks.Callback] = [logger, self._keep_best, saver]
        if not sys.stdout.isatty():
            callbacks.append(TellProgress(logger, phase, task.validation.total))
        if isinstance(phase.config, FinetuneConfig) and phase.config.sparsity:
            callbacks.insert(0, Prune(phase, phase.config.sparsity, first_step=step))  # before the state is saved
        callbacks += self._callbacks
        if step:  # Keras makes the variables of the metrics, whose values the saver restores, when it sees a batch
            task.model.evaluate(validation_batches.take(1), verbose=0)
        first_epoch = epoch if within else None
        with self._interruption.waiting():
            fit_phase(
                task.model, phase, batches, validation_batches, callbacks, first_epoch=first_epoch, first_step=step
            )
        return logger, pipeline_speed

    def _save_within(self, model: keras.Model, epoch: int, step: int) -> None:
        self._position = self._position._replace(epoch=epoch, step=step)
        self._save(model)

    def _save(self, model: keras.Model | None) -> None:
        """Save the state of the run, with that of the phase that fits `model`; None is between two phases."""
        started = time.monotonic()
        strategy = self._setup.strategy
        arrays = read_variables("classifier", self._setup.classifier.variables, strategy)
        if model is not None:
            if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
                raise DivergedError(f"a weight is not finite at step {self._log.step}")
            arrays |= read_variables("optimizer", model.optimizer.variables, strategy)
            arrays |= read_variables("metrics", model.metrics_variables, strategy)
        arrays |= {f"best/{number}": array for number, array in enumerate(self._keep_best.best_weights)}
        values = {
            "config": to_values(self._config),
            "compute_dtype": self._setup.compute_dtype,
            "replicas": strategy.num_replicas_in_sync,
            "position": self._position._asdict(),
            "within": None
            if model is None
            else {"kernel_gradients": kernel_gradients(model), "waited": self._keep_best.waited},
            "rate_share": self._rate_share,
            "rollbacks": self.rollbacks,
            "best": self._keep_best.best,
            "summaries": {name: summary._asdict() for name, summary in self.summaries.items()},
            "steps": self._log.step,
            "records": self._log.records,
            "minutes": self._watch.minutes(),
            "saving": self.saving,
            "versions": environment.versions(),
        }
        try:
            self._checkpoints.save(State(values, arrays))
            self.saving = {
                "saved": self.saving["saved"] + 1,
                "minutes": self.saving["minutes"] + (time.monotonic() - started) / 60,
            }
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print("warning: the state was not saved, the disk is full; the one before is kept", file=sys.stderr)

    def _restore(self, state: State) -> None:
        """Be at the moment of a state, but for what `_restore_within` does."""
        values, arrays = state
        write_variables("classifier", self._setup.classifier.variables, self._setup.strategy, arrays)
        self._position = Position(**values["position"])
        self._rate_share = values["rate_share"]
        self.rollbacks, self.saving = values["rollbacks"], values["saving"]
        self.summaries = {name: PhaseSummary(**summary) for name, summary in values["summaries"].items()}
        self._keep_best.best = None if values["best"] is None else tuple(values["best"])
        count = sum(name.startswith("best/") for name in arrays)
        self._keep_best.best_weights = [arrays[f"best/{number}"] for number in range(count)]
        self._log.go_back(values["steps"], values["records"])

    def _restore_within(self, model: keras.Model, state: State) -> None:
        """Restore what belongs to the phase; its metrics follow when `fit` has made and reset them."""
        set_kernel_gradients(model, state.values["within"]["kernel_gradients"])
        with self._setup.strategy.scope():
            model.optimizer.build(model.trainable_variables)
        write_variables("optimizer", model.optimizer.variables, self._setup.strategy, state.arrays)
        self._keep_best.waited = state.values["within"]["waited"]

    def _roll_back(self, phase: Phase, error: DivergedError) -> State:
        """Go back to the newest state that is whole, at a lower rate.

        Raises:
            UserError: that is not wanted, or was done too often.
        """
        rate = self._rate_share * phase.config.learning_rate
        state = self._checkpoints.newest() if self._config.checkpoint.divergence is Divergence.ROLLBACK else None
        if state is None or len(self.rollbacks) == ROLLBACKS:
            raise UserError(
                f"{error}: --{phase.name}_learning_rate is too high for this network. Received: {rate:g}"
            ) from error
        rollbacks = [*self.rollbacks, {"phase": phase.name, "step": self._log.step, "learning_rate": rate}]
        share = self._rate_share * ROLLBACK_FACTOR
        self._restore(state)
        self.rollbacks, self._rate_share = rollbacks, share
        print(
            f"warning: {error}: back to step {self._log.step}, --{phase.name}_learning_rate is now {rate * ROLLBACK_FACTOR:g}",
            file=sys.stderr,
        )
        return state


class SaveState(keras.callbacks.Callback):
    """Saves the state of a phase every so many steps and at the ends of its epochs, and ends a run that is asked to end.

    At an epoch's last step nothing is saved: its validation follows, and then its end. The phase's end is saved by the trainer.

    Args:
        save: takes the model, the epoch, and the steps of it that are done.
        phase: the phase.
        every: steps of an epoch from one state to the next; 0 saves at the ends of epochs only.
        first_step: steps of the first epoch that are done.
        within: the state that the phase goes on from.
        strategy: of the run.
        interruption: asks the run to end.
    """

    def __init__(
        self,
        save: Callable[[keras.Model, int, int], None],
        phase: Phase,
        *,
        every: int,
        first_step: int,
        within: State | None,
        strategy: tf.distribute.Strategy,
        interruption: Interruption,
    ) -> None:
        super().__init__()
        self._save, self._phase, self._every, self._interruption = save, phase, every, interruption
        self._epoch, self._step, self._first_step = 0, 0, first_step
        self._within, self._strategy = within, strategy

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Give the metrics, which Keras has just reset, what they were at the state."""
        self._epoch, self._step, self._first_step = epoch, self._first_step, 0
        if self._within is not None and self._step:
            write_variables("metrics", self.model.metrics_variables, self._strategy, self._within.arrays)
        self._within = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time to."""
        self._step += 1
        asked = self._interruption.asked
        if self._step < self._phase.steps_per_epoch and (asked or (self._every and self._step % self._every == 0)):
            self._save(self.model, self._epoch, self._step)
        if asked:
            self._interruption.end()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """End a run that is asked to; what the epoch did since its last state is done again."""
        if self._interruption.asked:
            self._interruption.end()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save where another epoch follows."""
        if epoch + 1 < self._phase.first_epoch + self._phase.config.epochs and not self.model.stop_training:
            self._save(self.model, epoch + 1, 0)
