"""Train a run phase by phase, from its beginning or from any checkpoint."""

import dataclasses
import errno
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from cifar_keras.config import Divergence, RunConfig, to_values
from cifar_keras.data.pipeline import evaluation_batches
from cifar_keras.errors import DivergedError, UserError
from cifar_keras.files import environment
from cifar_keras.training.batches import batches_of
from cifar_keras.training.checkpoints import Checkpoint, Checkpoints, named, numbered, read_variables, write_variables
from cifar_keras.training.compute import kernel_gradients, set_kernel_gradients
from cifar_keras.training.fit import compile_phase, fit_phase
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.keep_best import KeepBest
from cifar_keras.training.operations import count_operations
from cifar_keras.training.optimizers import FusedAdam
from cifar_keras.training.phases import Phase, StageLeft, stage_in_words
from cifar_keras.training.progress import PhaseSummary, Position, Progress
from cifar_keras.training.pruning import Prune, first_sparse_epoch
from cifar_keras.training.save_checkpoints import SaveCheckpoints
from cifar_keras.training.setup import RunSetup
from cifar_keras.training.stopwatch import Stopwatch, measure_speed
from cifar_keras.training.tasks import Task, make_task
from cifar_keras.training.tracking import LogPhase, RunLog, TellProgress

# Training waits for data if it is faster than this fraction of the input pipeline's own speed: on a CPU both share the same cores.
WAITING_FRACTION = 0.5
# A rollback halves the learning rate, and three of them reach an eighth of it. If the loss is not finite there either, the run ends: a
# rate that is so far from right is a mistake in the command.
ROLLBACK_FACTOR = 0.5
ROLLBACKS = 3


class Trainer:
    """The trainer of a run's classifier.

    Args:
        config: the config of the run.
        setup: what the run trains with.
        log: the log of the run.
        watch: the stopwatch of the run, which gets the minutes of each phase.
        checkpoints: the checkpoints of the run.
        interruption: knows whether the run is asked to end.
        callbacks: callbacks that `fit` calls after the run's own.
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
        self._keep_best = KeepBest(setup.classifier, config.objective.choose_by)
        self.progress = Progress()

    def train(self, checkpoint: Checkpoint | None = None) -> None:
        """Train the phases that are left, and leave the classifier at its best epoch.

        Args:
            checkpoint: the checkpoint to continue from; None begins the run.

        Raises:
            UserError: the loss diverged, or the run began on another number of devices.
            OSError: the workdir cannot be written any more.
            InterruptedRunError: a signal asked the run to end. There is a checkpoint to go on from.
        """
        if checkpoint is None:
            # A first checkpoint, so that a run that is killed in its first steps is resumed with the same weights.
            self._save(None)
        else:
            self._check_devices(checkpoint)
            self._watch.restore(checkpoint.values["minutes"])
            if (before := checkpoint.values["versions"]) != environment.versions():
                print(f"warning: the run began with other versions, so its bits can differ: {before}", file=sys.stderr)
            self._restore(checkpoint)
        while self.progress.position.phase < len(self._setup.phases):
            phase = self._setup.phases[self.progress.position.phase]
            try:
                with self._watch.time(phase.name):
                    self._train_phase(phase, checkpoint)
                checkpoint = None
            except DivergedError as error:
                checkpoint = self._roll_back(phase, error)
            # A signal may have come after the phase's last step; the checkpoint of its end is saved.
            if self._interruption.asked:
                self._interruption.end()

    def history(self) -> dict[str, Any]:
        """Return what `result.json` says about the training."""
        return {
            "compute_dtype": self._setup.compute_dtype,
            "training_pflop": self._log.training_pflop,
            "phases": {name: summary._asdict() for name, summary in self.progress.summaries.items()},
            "rollbacks": self.progress.rollbacks,
            "states": self.progress.checkpoints,
        }

    def _check_devices(self, checkpoint: Checkpoint) -> None:
        before, now = checkpoint.values["replicas"], self._setup.strategy.num_replicas_in_sync
        # With another number of devices, each device gets another part of a batch and sums up another part of the metrics.
        if before != now:
            raise UserError(
                f"--resume: the run began on {before} devices and has to go on there. Received: {now} devices"
            )

    def _train_phase(self, phase: Phase, checkpoint: Checkpoint | None) -> None:
        """Train a phase from its beginning, or from a checkpoint in the middle of it."""
        started, steps_before = time.monotonic(), self._log.step
        # A checkpoint between two phases holds nothing of the next phase.
        mid_phase = checkpoint if checkpoint is not None and checkpoint.values["mid_phase"] is not None else None
        position = self.progress.position
        rate = self.progress.rate_fraction * phase.config.learning_rate
        phase = phase._replace(config=dataclasses.replace(phase.config, learning_rate=rate))
        self._begin_keeping(phase, mid_phase)
        begins = f", from step {position.step} of epoch {position.epoch - phase.first_epoch + 1}" if mid_phase else ""
        print(f"{phase.name} phase: {len(phase.epochs)} epochs of {phase.steps_per_epoch} steps{begins}", flush=True)
        logger = LogPhase(self._log, phase, self._config.data.global_batch_size, first_step=position.step)
        for left in phase.stages_from(position.epoch):
            if len(phase.stages) > 1:
                print(stage_in_words(phase, left), flush=True)
            task = make_task(self._config, self._setup, phase, left.stage)
            operations = count_operations(self._config, self._setup, phase, left.stage, cached=task.cached)
            # A process that goes on inside a stage has restored what was counted at its beginning.
            logger.count(operations, begins=mid_phase is None or mid_phase.values["mid_phase"]["stage"] != left.number)
            self._compile(phase, left.number, task, mid_phase)
            pipeline_speed = self._fit(phase, left, task, logger, mid_phase)
            self.progress.position = Position(position.phase, left.epochs.stop)
            if left.number + 1 == len(phase.stages) or task.model.stop_training:
                break
            # The next stage has its own model and optimizer. It takes over the optimizer's variables as from a checkpoint.
            mid_phase = Checkpoint(
                {"mid_phase": self._mid_phase(task.model, left.number)}, self._optimizer_arrays(task.model)
            )
        # This comes before the checkpoint of the phase's end, from which the next phase begins.
        self._keep_best.go_back()
        speed = logger.images_per_second
        if task.cached:
            # Computing the features takes nearly all of the time; the steps take next to none.
            images = (self._log.step - steps_before) * self._config.data.global_batch_size
            speed = images / (time.monotonic() - started)
        elif speed and pipeline_speed and speed > WAITING_FRACTION * pipeline_speed:
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

    def _begin_keeping(self, phase: Phase, mid_phase: Checkpoint | None) -> None:
        """Begin to look for the best epoch.

        In a phase that prunes, only epochs that end at full sparsity may become it. In a phase of several stages, only epochs of
        the last stage may: the others are measured at another image size, or with fewer layers that learned.
        """
        last_stage = phase.epochs.stop - phase.stages[-1].epochs
        first_epoch = max(first_sparse_epoch(phase) if phase.sparsity else 0, last_stage)
        waited = self._keep_best.waited if mid_phase else 0
        self._keep_best.begin_phase(phase.config.early_stopping_patience, first_epoch=first_epoch, waited=waited)
        # The best epoch so far is of a phase that did not prune.
        if phase.sparsity and self.progress.position.epoch <= first_epoch:
            self._keep_best.forget()

    def _compile(self, phase: Phase, number: int, task: Task, mid_phase: Checkpoint | None) -> None:
        """Compile a stage's model, and restore its optimizer from a checkpoint of this stage, or from the end of the stage before."""
        model, strategy = task.model, self._setup.strategy
        choose_by = self._config.objective.choose_by
        compile_phase(model, phase, strategy, compute_dtype=self._setup.compute_dtype, choose_by=choose_by)
        if mid_phase is None:
            return
        # Keras creates the optimizer's variables at the first step, which would be too late to restore them.
        with strategy.scope():
            model.optimizer.build(model.trainable_variables)
        same_stage = mid_phase.values["mid_phase"]["stage"] == number
        new = write_variables(
            "optimizer", self._named(model.optimizer), strategy, mid_phase.arrays, all_of_them=same_stage
        )
        if same_stage:
            # This comes before the model is traced. A new measurement could choose differently, which would change the bits.
            set_kernel_gradients(model, mid_phase.values["mid_phase"]["kernel_gradients"])
        else:
            # Weights that begin to learn in this stage have moments of zero. Adam corrects these by the steps since the stage began.
            stage_began = (self.progress.position.epoch - phase.first_epoch) * phase.steps_per_epoch
            begin = [name.removesuffix("_momentum") for name in new if name.endswith("_momentum")]
            self.progress.first_steps |= dict.fromkeys(begin, stage_began)
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if isinstance(optimizer, FusedAdam):
            places = {variable.path: str(number) for number, variable in enumerate(self._setup.classifier.variables)}
            learning = [places[variable.path] for variable in model.trainable_variables]
            first_steps = [self.progress.first_steps.get(place, 0) for place in learning]
            optimizer.first_steps = first_steps if any(first_steps) else ()

    def _fit(
        self, phase: Phase, left: StageLeft, task: Task, logger: LogPhase, mid_phase: Checkpoint | None
    ) -> float | None:
        """Train a stage, or what is left of it, and return the images/s of the input pipeline alone."""
        step = self.progress.position.step
        batches = batches_of(self._config, phase, phase.steps_of(left.epochs, step), task)
        # This comes before `fit`, which would compete with the pipeline for the cores.
        pipeline_speed = measure_speed(batches)
        validation_batches = evaluation_batches(task.validation, global_batch_size=self._config.data.global_batch_size)
        callbacks = self._callbacks_of(phase, left.number, task, logger, mid_phase)
        if step:
            # Keras creates the metrics' variables when it sees a batch, and `SaveCheckpoints` restores them before `fit` sees one.
            task.model.evaluate(validation_batches.take(1), verbose=0)
        with self._interruption.waiting():
            fit_phase(task.model, phase, batches, validation_batches, callbacks, epochs=left.epochs, first_step=step)
        return pipeline_speed

    def _callbacks_of(
        self, phase: Phase, number: int, task: Task, logger: LogPhase, mid_phase: Checkpoint | None
    ) -> list[keras.callbacks.Callback]:
        """Return the callbacks of `fit`, in the order in which Keras calls them."""
        step = self.progress.position.step

        def save(model: keras.Model, epoch: int, step: int) -> None:
            self.progress.position = self.progress.position._replace(epoch=epoch, step=step)
            self._save(model, number)

        saver = SaveCheckpoints(
            save,
            phase,
            every=self._config.checkpoint.checkpoint_every_steps,
            first_step=step,
            mid_phase=mid_phase,
            strategy=self._setup.strategy,
            interruption=self._interruption,
        )
        # The saver comes last, because it saves what the others have counted.
        callbacks: list[keras.callbacks.Callback] = [logger, self._keep_best, saver]
        if not sys.stdout.isatty():
            callbacks.append(TellProgress(logger, phase, task.validation.total))
        if phase.sparsity:
            # Pruning comes first, so that the best epoch and the checkpoints have the pruned weights.
            callbacks.insert(0, Prune(phase, first_step=step))
        return [*callbacks, *self._callbacks]

    def _save(self, model: keras.Model | None, stage: int = 0) -> None:
        """Save a checkpoint. `model` is the model that the running stage fits, or None between two phases."""
        started = time.monotonic()
        checkpoint = self._checkpoint(model, stage)
        try:
            self._checkpoints.save(checkpoint)
            self.progress.count_checkpoint((time.monotonic() - started) / 60)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print("warning: the checkpoint was not saved, the disk is full; the one before is kept", file=sys.stderr)

    def _checkpoint(self, model: keras.Model | None, stage: int) -> Checkpoint:
        """Return a checkpoint from which another process can continue with the same bits.

        Raises:
            DivergedError: a weight is not finite.
        """
        strategy, best = self._setup.strategy, self._keep_best.state()
        arrays = read_variables("classifier", numbered(self._setup.classifier.variables), strategy)
        if model is not None:
            # This is checked here, so that a rollback can go back to every checkpoint.
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
            "mid_phase": None if model is None else self._mid_phase(model, stage),
            "keep_best": best.values,
            "log": self._log.state(),
            "minutes": self._watch.minutes(),
        }
        return Checkpoint(values, arrays | best.arrays)

    def _mid_phase(self, model: keras.Model, stage: int) -> dict[str, Any]:
        return {"stage": stage, "kernel_gradients": kernel_gradients(model)}

    def _optimizer_arrays(self, model: keras.Model) -> dict[str, NDArray[Any]]:
        return read_variables("optimizer", self._named(model.optimizer), self._setup.strategy)

    def _named(self, optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
        return named(optimizer, self._setup.classifier.variables)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Restore everything except the running phase: `_compile` and `SaveCheckpoints` restore that when its parts are made."""
        values, arrays = checkpoint
        variables = numbered(self._setup.classifier.variables)
        write_variables("classifier", variables, self._setup.strategy, arrays)
        self.progress.restore(values["progress"])
        self._keep_best.restore(Checkpoint(values["keep_best"], arrays))
        self._log.restore(values["log"])

    def _roll_back(self, phase: Phase, error: DivergedError) -> Checkpoint:
        """Go back to the newest undamaged checkpoint, at a lower learning rate, and return it.

        Raises:
            UserError: the run is not set to roll back, has no checkpoint, or rolled back too often.
        """
        rate = self.progress.rate_fraction * phase.config.learning_rate
        checkpoint = self._checkpoints.newest() if self._config.checkpoint.divergence is Divergence.ROLLBACK else None
        if checkpoint is None or len(self.progress.rollbacks) == ROLLBACKS:
            raise UserError(
                f"{error}: --{phase.name}_learning_rate is too high for this network. Received: {rate:g}"
            ) from error
        rollback = {"phase": phase.name, "step": self._log.step, "learning_rate": rate}
        rollbacks, fraction = [*self.progress.rollbacks, rollback], self.progress.rate_fraction * ROLLBACK_FACTOR
        self._restore(checkpoint)
        # After `_restore`, which sets both to what they were at the checkpoint.
        self.progress.rollbacks, self.progress.rate_fraction = rollbacks, fraction
        print(
            f"warning: {error}: back to step {self._log.step}, --{phase.name}_learning_rate is now {rate * ROLLBACK_FACTOR:g}",
            file=sys.stderr,
        )
        return checkpoint
