"""Log a run while it trains: `metrics.jsonl` and TensorBoard events, with both phases on one axis of steps."""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import keras
import tensorflow as tf

from cifar_keras.errors import DivergedError
from cifar_keras.files import paths
from cifar_keras.files.progress_bar import EVERY_SECONDS
from cifar_keras.training.operations import StageOperations
from cifar_keras.training.phases import Phase

LOG_EVERY_STEPS = 10


class Sink(Protocol):
    """A place that the history of a run is written to.

    When a sink is opened again, what was written to it before is no longer part of the run.
    """

    def open(self) -> None:
        """Begin an empty history."""

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write the metrics of a step; `record["step"]` is its place on the axis."""

    def write_text(self, name: str, markdown: str, step: int) -> None:
        """Show a text."""

    def write_picture(self, name: str, png: bytes, step: int) -> None:
        """Show a picture."""

    def close(self) -> None:
        """Write everything out. Nothing can be written afterwards."""


class JsonLines:
    """The sink `metrics.jsonl`: one JSON object per line. It holds only the records."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> None:
        """Begin an empty file."""
        self._file = self._path.open("w", encoding="utf-8")

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Append a line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def write_text(self, name: str, markdown: str, step: int) -> None:
        """Do nothing."""

    def write_picture(self, name: str, png: bytes, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """The sink for TensorBoard: the folders `tensorboard/train` and `tensorboard/validation`.

    Both have the same metrics under the same names, so that one chart shows both splits.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Begin empty folders."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writers = {
            split: tf.summary.create_file_writer(str(self._folder / split)) for split in ("train", "validation")
        }

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write a scalar for each metric."""
        for name, value in record.items():
            if isinstance(value, float):
                split = "validation" if name.startswith("validation_") else "train"
                with self._writers[split].as_default():
                    tf.summary.scalar(name.removeprefix("validation_"), value, step=record["step"])

    def write_text(self, name: str, markdown: str, step: int) -> None:
        """Show a text."""
        with self._writers["train"].as_default():
            tf.summary.text(name, markdown, step=step)

    def write_picture(self, name: str, png: bytes, step: int) -> None:
        """Show a picture."""
        with self._writers["train"].as_default():
            tf.summary.image(name, tf.io.decode_png(png, channels=3)[None], step=step)

    def close(self) -> None:
        """Write the events out."""
        for writer in self._writers.values():
            writer.close()


class RunLog:
    """The log of one run, kept open through its phases. It counts the steps and passes everything to its sinks.

    A record is written every `LOG_EVERY_STEPS` steps, as `{"phase", "epoch", "step", "loss", "accuracy", "cross_entropy",
    "learning_rate", "images_per_second"}`. At the end of an epoch the record also has `validation_loss`, `validation_accuracy` and
    `validation_cross_entropy`, and `training_pflop`, the operations of the run so far in 10^15. If another metric chooses the best epoch,
    the records have that too.

    `loss`, `accuracy` and `cross_entropy` are means since the epoch began. `loss` is what the phase minimizes, including label
    smoothing, class weights and a teacher. `cross_entropy` is the loss of the labels alone. The speed is that of the phase so far.

    Args:
        workdir: the workdir of the run, for `metrics.jsonl` and TensorBoard's events.
        more: further sinks.
    """

    def __init__(self, workdir: Path, more: Sequence[Sink] = ()) -> None:
        self.step = 0  # steps since the run began, over all phases
        self.operations = 0  # floating point operations of training since the run began, at the end of the last epoch
        self.records: list[dict[str, Any]] = []
        self._sinks: list[Sink] = [JsonLines(workdir / paths.METRICS), TensorBoard(workdir / "tensorboard"), *more]
        self._shown: list[Callable[[Sink], None]] = []  # functions that show the texts and pictures again
        for sink in self._sinks:
            sink.open()

    @property
    def training_pflop(self) -> float:
        """Floating point operations of training up to the end of the last epoch, in 10^15."""
        return next((record["training_pflop"] for record in reversed(self.records) if "training_pflop" in record), 0.0)

    def state(self) -> dict[str, Any]:
        """Return the log as plain values for JSON."""
        return {"step": self.step, "operations": self.operations, "records": self.records}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go back to an earlier state of the log. What was written since then is no longer part of the run."""
        self.close()
        self.step, self.operations, self.records = values["step"], values["operations"], []
        for sink in self._sinks:
            sink.open()
            for show in self._shown:
                show(sink)
        for record in values["records"]:
            self.write_record(record)

    def write_record(self, record: dict[str, Any]) -> None:
        """Append one record; `record["step"]` is its place on the axis."""
        self.records.append(record)
        for sink in self._sinks:
            sink.write_record(record)

    def write_text(self, name: str, markdown: str) -> None:
        """Show a text."""
        step = self.step
        self._show(lambda sink: sink.write_text(name, markdown, step))

    def write_picture(self, name: str, png: bytes) -> None:
        """Show a picture."""
        step = self.step
        self._show(lambda sink: sink.write_picture(name, png, step))

    def _show(self, show: Callable[[Sink], None]) -> None:
        self._shown.append(show)
        for sink in self._sinks:
            show(sink)

    def close(self) -> None:
        """Write everything out. No record can follow."""
        for sink in self._sinks:
            sink.close()


class TellProgress(keras.callbacks.Callback):
    """A callback that prints a line every half minute, for an output that is no terminal. In a terminal Keras draws a bar.

    Args:
        logger: the callback that counts the steps and measures the speed.
        phase: the phase.
        validation_images: number of images that the validation at the end of an epoch goes through.
    """

    def __init__(self, logger: "LogPhase", phase: Phase, validation_images: int) -> None:
        super().__init__()
        self._logger, self._phase, self._validation_images = logger, phase, validation_images
        self._told = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Print the step, the speed, and the minutes that are left of the phase without its validation."""
        step, speed = self._logger.step_of_phase, self._logger.images_per_second
        if speed and self._is_time():
            left = (self._phase.steps - step) * self._logger.global_batch_size / speed
            print(
                f"{self._phase.name} phase: step {step:,} of {self._phase.steps:,}, {speed:,.0f} images/s, {left / 60:.1f} minutes left",
                flush=True,
            )

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Print how far the validation is."""
        if self._is_time():
            done = min((batch + 1) * self._logger.global_batch_size, self._validation_images)
            print(f"{self._phase.name} phase: validation, {done:,} of {self._validation_images:,} images", flush=True)

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now < self._told + EVERY_SECONDS:
            return False
        self._told = now
        return True


class LogPhase(keras.callbacks.Callback):
    """A callback that logs one phase, measures its speed, and detects a loss that is not finite.

    `images_per_second` is measured from the end of an epoch's first step to the end of its last, so that neither tracing nor validation
    is counted. It is None if no epoch has two steps.
    """

    def __init__(self, log: RunLog, phase: Phase, global_batch_size: int, first_step: int = 0) -> None:
        super().__init__()
        self._log = log
        self._steps_before = first_step  # of the epoch that comes next
        self._phase = phase
        self.global_batch_size = global_batch_size
        self._epoch = phase.first_epoch
        self._steps_timed = 0  # in the epochs that have ended
        self._seconds_timed = 0.0
        self._epoch_started = self._last_step_ended = 0.0
        self._steps_in_epoch = 0
        self._learning_rate = 0.0
        self._operations = StageOperations(0, 0, 0)

    def count(self, operations: StageOperations, *, begins: bool) -> None:
        """Count the operations of the stage that comes next, or goes on in this process."""
        self._operations = operations
        if begins:
            self._log.operations += operations.ahead

    @property
    def step_of_phase(self) -> int:
        """The number of steps of the phase that are done, including those of an earlier process."""
        epochs = self._epoch - self._phase.first_epoch
        return epochs * self._phase.steps_per_epoch + self._steps_before + self._steps_in_epoch

    @property
    def images_per_second(self) -> float | None:
        """Mean speed of the phase so far."""
        steps = self._steps_timed + max(0, self._steps_in_epoch - 1)
        seconds = self._seconds_timed + self._last_step_ended - self._epoch_started
        return steps * self.global_batch_size / seconds if steps else None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the epoch's clock."""
        self._epoch = epoch
        self._steps_timed += max(0, self._steps_in_epoch - 1)
        self._seconds_timed += self._last_step_ended - self._epoch_started
        if self._steps_in_epoch:
            self._steps_before = 0
        self._steps_in_epoch = 0
        self._epoch_started = self._last_step_ended = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Read the learning rate of this step. After the step, the optimizer has the rate of the next one."""
        self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the step, and log every tenth. The last step of an epoch is logged later, with its validation."""
        self._last_step_ended = time.monotonic()
        if self._steps_in_epoch == 0:
            self._epoch_started = self._last_step_ended
        self._steps_in_epoch += 1
        self._log.step += 1
        last = self._steps_before + self._steps_in_epoch == self._phase.steps_per_epoch
        if self._log.step % LOG_EVERY_STEPS == 0 and not last:
            self._write(logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the epoch with its validation metrics."""
        self._log.operations += self._operations.per_epoch
        self._write(logs or {}, {"training_pflop": (self._log.operations + self._operations.of_teacher) / 1e15})

    def _write(self, logs: dict[str, Any], more: Mapping[str, float] = MappingProxyType({})) -> None:
        metrics = {name.replace("val_", "validation_"): float(value) for name, value in logs.items()}
        if not all(map(math.isfinite, metrics.values())):
            raise DivergedError(f"the loss is not finite at step {self._log.step}")
        speed = self.images_per_second
        self._log.write_record(
            {"phase": self._phase.name, "epoch": self._epoch, "step": self._log.step}
            | metrics
            | {"learning_rate": self._learning_rate}
            | dict(more)
            | ({"images_per_second": speed} if speed else {})
        )
