"""Through the phases of a run, from its beginning or from any moment at which its state was saved."""

import dataclasses
import errno
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import Divergence, RunConfig, to_values
from cifar_keras.data.pipeline import PARALLEL_CALLS, evaluation_batches, measure_speed, training_batches
from cifar_keras.errors import DivergedError, UserError
from cifar_keras.files import environment
from cifar_keras.training.checkpoints import Checkpoints, State, named, numbered, read_variables, write_variables
from cifar_keras.training.compute import kernel_gradients, set_kernel_gradients
from cifar_keras.training.fit import compile_phase, fit_phase
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.keep_best import KeepBest
from cifar_keras.training.optimizers import FusedAdam
from cifar_keras.training.phases import Phase, StageLeft, stage_in_words
from cifar_keras.training.progress import PhaseSummary, Position, Progress
from cifar_keras.training.pruning import Prune, first_sparse_epoch
from cifar_keras.training.setup import RunSetup
from cifar_keras.training.stopwatch import Stopwatch
from cifar_keras.training.tasks import Task, make_task
from cifar_keras.training.tracking import LogPhase, RunLog, TellProgress

PIPELINE_SHARE = 0.5  # of what the pipeline gives alone: from there on a model that shares its cores waits for it
ROLLBACKS = 3  # in a run; what is not finite at an eighth of the rate does not get better
ROLLBACK_FACTOR = 0.5  # of the learning rate, at each


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
        self.progress = Progress()

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
            self._watch.restore(state.values["minutes"])
            if (before := state.values["versions"]) != environment.versions():
                print(f"warning: the run began with other versions, so its bits can differ: {before}", file=sys.stderr)
            self._restore(state)
        while self.progress.position.phase < len(self._setup.phases):
            phase = self._setup.phases[self.progress.position.phase]
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
            "phases": {name: summary._asdict() for name, summary in self.progress.summaries.items()},
            "rollbacks": self.progress.rollbacks,
            "states": self.progress.states,
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
        position = self.progress.position
        rate = self.progress.rate_fraction * phase.config.learning_rate
        phase = phase._replace(config=dataclasses.replace(phase.config, learning_rate=rate))
        self._begin_keeping(phase, within)
        begins = f", from step {position.step} of epoch {position.epoch - phase.first_epoch + 1}" if within else ""
        print(f"{phase.name} phase: {len(phase.epochs)} epochs of {phase.steps_per_epoch} steps{begins}", flush=True)
        logger = LogPhase(self._log, phase, self._config.data.global_batch_size, first_step=position.step)
        for left in phase.stages_from(position.epoch):
            if len(phase.stages) > 1:
                print(stage_in_words(phase, left), flush=True)
            task = make_task(self._config, self._setup, phase, left.stage)
            self._compile(phase, left.number, task, within)
            pipeline_speed = self._fit(phase, left, task, logger, within)
            self.progress.position = Position(position.phase, left.epochs.stop)
            if left.number + 1 == len(phase.stages) or task.model.stop_training:
                break
            within = State({"within": self._within(task.model, left.number)}, self._optimizer_arrays(task.model))
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
        self.progress.summaries[phase.name] = PhaseSummary(speed, pipeline_speed, task.cached, by_matmul)
        self.progress.position = Position(position.phase + 1, phase.epochs.stop)
        self.progress.rate_fraction, self.progress.first_steps = 1.0, {}
        self._save(None)

    def _begin_keeping(self, phase: Phase, within: State | None) -> None:
        """Let the best epoch be one of those that can be served.

        In a phase that prunes only an epoch at whose end all is pruned can be; in a phase of several stages only one of the last,
        because the others are measured at another image size, or with less that learned.
        """
        last_stage = phase.epochs.stop - phase.stages[-1].epochs
        first_epoch = max(first_sparse_epoch(phase) if phase.sparsity else 0, last_stage)
        waited = self._keep_best.waited if within else 0
        self._keep_best.begin_phase(phase.config.early_stopping_patience, first_epoch=first_epoch, waited=waited)
        if phase.sparsity and self.progress.position.epoch <= first_epoch:
            self._keep_best.forget()

    def _compile(self, phase: Phase, number: int, task: Task, within: State | None) -> None:
        """Compile a stage's model, and give its optimizer what the state has of it: the stage's own, or the one's before it."""
        model, strategy = task.model, self._setup.strategy
        compile_phase(
            model,
            phase,
            strategy,
            compute_dtype=self._setup.compute_dtype,
            distillation=self._setup.distillation,
        )
        if within is None:
            return
        with strategy.scope():
            model.optimizer.build(model.trainable_variables)
        same_stage = within.values["within"]["stage"] == number
        new = write_variables(
            "optimizer", self._named(model.optimizer), strategy, within.arrays, all_of_them=same_stage
        )
        if same_stage:
            set_kernel_gradients(model, within.values["within"]["kernel_gradients"])
        else:
            stage_began = (self.progress.position.epoch - phase.first_epoch) * phase.steps_per_epoch
            begin = [name.removesuffix("_momentum") for name in new if name.endswith("_momentum")]
            self.progress.first_steps |= dict.fromkeys(begin, stage_began)
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if isinstance(optimizer, FusedAdam):
            places = {variable.path: str(number) for number, variable in enumerate(self._setup.classifier.variables)}
            learning = [places[variable.path] for variable in model.trainable_variables]
            first_steps = [self.progress.first_steps.get(place, 0) for place in learning]
            optimizer.first_steps = first_steps if any(first_steps) else ()

    def _fit(self, phase: Phase, left: StageLeft, task: Task, logger: LogPhase, within: State | None) -> float | None:
        """Fit a stage, or what is left of it, and return what the input pipeline alone gives."""
        batch_size = self._config.data.global_batch_size
        step = self.progress.position.step
        batches = training_batches(
            task.train,
            global_batch_size=batch_size,
            steps_per_epoch=phase.steps_per_epoch,
            seed=self._config.seed,
            steps=phase.steps_of(left.epochs, step),
            change=task.change,
            parallel_calls=None if self._config.deterministic else PARALLEL_CALLS,
        )
        pipeline_speed = measure_speed(batches)
        validation_batches = evaluation_batches(task.validation, global_batch_size=batch_size)
        callbacks = self._callbacks_of(phase, left.number, task, logger, within)
        if step:  # Keras makes the variables of the metrics, whose values the saver restores, when it sees a batch
            task.model.evaluate(validation_batches.take(1), verbose=0)
        with self._interruption.waiting():
            fit_phase(task.model, phase, batches, validation_batches, callbacks, epochs=left.epochs, first_step=step)
        return pipeline_speed

    def _callbacks_of(
        self, phase: Phase, number: int, task: Task, logger: LogPhase, within: State | None
    ) -> list[keras.callbacks.Callback]:
        """Return what takes part in `fit`, in the order in which Keras calls it."""
        step = self.progress.position.step

        def save(model: keras.Model, epoch: int, step: int) -> None:
            self.progress.position = self.progress.position._replace(epoch=epoch, step=step)
            self._save(model, number)

        saver = SaveState(
            save,
            phase,
            every=self._config.checkpoint.checkpoint_every_steps,
            first_step=step,
            within=within,
            strategy=self._setup.strategy,
            interruption=self._interruption,
        )
        callbacks: list[keras.callbacks.Callback] = [logger, self._keep_best, saver]
        if not sys.stdout.isatty():
            callbacks.append(TellProgress(logger, phase, task.validation.total))
        if phase.sparsity:
            # Before the state is saved, which then has the weights that are left.
            callbacks.insert(0, Prune(phase, phase.sparsity, first_step=step))
        return [*callbacks, *self._callbacks]

    def _save(self, model: keras.Model | None, stage: int = 0) -> None:
        """Save the state of the run, with that of the stage that fits `model`; None is between two phases."""
        started = time.monotonic()
        state = self._state(model, stage)
        try:
            self._checkpoints.save(state)
            self.progress.add_state((time.monotonic() - started) / 60)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print("warning: the state was not saved, the disk is full; the one before is kept", file=sys.stderr)

    def _state(self, model: keras.Model | None, stage: int) -> State:
        """Return what another process needs to go on with the same bits.

        Raises:
            DivergedError: a weight is not finite.
        """
        strategy, best = self._setup.strategy, self._keep_best.state()
        arrays = read_variables("classifier", numbered(self._setup.classifier.variables), strategy)
        if model is not None:
            if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
                raise DivergedError(f"a weight is not finite at step {self._log.step}")
            arrays |= self._optimizer_arrays(model)
            arrays |= read_variables("metrics", numbered(model.metrics_variables), strategy)
        values = {
            "config": to_values(self._config),
            "compute_dtype": self._setup.compute_dtype,
            "replicas": strategy.num_replicas_in_sync,
            "versions": environment.versions(),
            "progress": self.progress.state(),
            "within": None if model is None else self._within(model, stage),
            "keep_best": best.values,
            "log": self._log.state(),
            "minutes": self._watch.minutes(),
        }
        return State(values, arrays | best.arrays)

    def _within(self, model: keras.Model, stage: int) -> dict[str, Any]:
        return {"stage": stage, "kernel_gradients": kernel_gradients(model)}

    def _optimizer_arrays(self, model: keras.Model) -> dict[str, NDArray[Any]]:
        return read_variables("optimizer", self._named(model.optimizer), self._setup.strategy)

    def _named(self, optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
        return named(optimizer, self._setup.classifier.variables)

    def _restore(self, state: State) -> None:
        """Restore everything but the running phase, which `_compile` and the callbacks restore when they have made its parts."""
        values, arrays = state
        variables = numbered(self._setup.classifier.variables)
        write_variables("classifier", variables, self._setup.strategy, arrays)
        self.progress.restore(values["progress"])
        self._keep_best.restore(State(values["keep_best"], arrays))
        self._log.restore(values["log"])

    def _roll_back(self, phase: Phase, error: DivergedError) -> State:
        """Go back to the newest state that is whole, at a lower rate.

        Raises:
            UserError: that is not wanted, or was done too often.
        """
        rate = self.progress.rate_fraction * phase.config.learning_rate
        state = self._checkpoints.newest() if self._config.checkpoint.divergence is Divergence.ROLLBACK else None
        if state is None or len(self.progress.rollbacks) == ROLLBACKS:
            raise UserError(
                f"{error}: --{phase.name}_learning_rate is too high for this network. Received: {rate:g}"
            ) from error
        rollback = {"phase": phase.name, "step": self._log.step, "learning_rate": rate}
        rollbacks, fraction = [*self.progress.rollbacks, rollback], self.progress.rate_fraction * ROLLBACK_FACTOR
        self._restore(state)
        self.progress.rollbacks, self.progress.rate_fraction = rollbacks, fraction
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
            write_variables("metrics", numbered(self.model.metrics_variables), self._strategy, self._within.arrays)
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
        if epoch + 1 < self._phase.epochs.stop and not self.model.stop_training:
            self._save(self.model, epoch + 1, 0)
