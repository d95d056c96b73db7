"""Faults while a run trains, and going on with it: `Trainer` on the small network."""

import contextlib
import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from small_runs import SHORT, set_up_small, small_config, train_small

from cifar_keras.errors import InterruptedRunError, UserError
from cifar_keras.training import trainer as trainer_lib
from cifar_keras.training.checkpoints import Checkpoints
from cifar_keras.training.fit import fit_phase
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.setup import RunSetup
from cifar_keras.training.tracking import RunLog
from cifar_keras.training.trainer import Trainer

FLAGS: dict[str, Any] = {**SHORT, "head_cached_features": False, "finetune_cached_features": False}


def train(folder: Path, **flags: Any) -> tuple[Trainer, RunSetup, RunLog]:
    config = small_config(**FLAGS | flags)
    setup, log = set_up_small(config), RunLog(folder)
    return train_small(config, setup, log, folder), setup, log


def join_in(patch: pytest.MonkeyPatch, callback: keras.callbacks.Callback) -> None:
    """Let a callback take part in every phase, before the trainer's own."""

    def fit(model: Any, phase: Any, batches: Any, validation: Any, callbacks: Any, **settings: Any) -> None:
        fit_phase(model, phase, batches, validation, [callback, *callbacks], **settings)

    patch.setattr(trainer_lib, "fit_phase", fit)


def poison(monkeypatch: pytest.MonkeyPatch, phase: str, at_rates_above: float) -> list[float]:
    """Put infinity into a weight before the third step of a phase, as a rate that is too high does. Lists the rates that were tried."""
    rates: list[float] = []

    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 2 and rates[-1] > at_rates_above:
                kernel = self.model.get_layer("head").kernel
                kernel.assign(np.full(kernel.shape, np.inf, np.float32))

    def fit(model: Any, fitted: Any, batches: Any, validation: Any, callbacks: Any, **settings: Any) -> None:
        if fitted.name == phase:
            rates.append(fitted.config.learning_rate)
            callbacks = [Poison(), *callbacks]
        fit_phase(model, fitted, batches, validation, callbacks, **settings)

    monkeypatch.setattr(trainer_lib, "fit_phase", fit)
    return rates


@pytest.mark.parametrize("phase", ["head", "finetune"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rate(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, phase, 0)
    with pytest.raises(
        UserError, match=rf"^the loss is not finite at step \d+: --{phase}_learning_rate .* Received: 0\.\d+$"
    ):
        train(tmp_path)


def test_a_roll_back_goes_to_the_last_checkpoint_at_half_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = poison(monkeypatch, "finetune", 0.01)
    done, setup, log = train(tmp_path, divergence="rollback", finetune_learning_rate=0.03)
    assert rates == [0.03, 0.015, 0.0075]
    assert [rollback["learning_rate"] for rollback in done.progress.rollbacks] == [0.03, 0.015]
    assert {rollback["phase"] for rollback in done.progress.rollbacks} == {"finetune"}
    assert capsys.readouterr().err.count("--finetune_learning_rate is now 0.0075") == 1
    # What was not good is no part of the history, and the phase was trained to its end.
    assert [record["step"] for record in log.records if "validation_loss" in record] == [4, 8, 12, 16]
    assert max(record["learning_rate"] for record in log.records if record["phase"] == "finetune") <= 0.0075
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == log.records
    assert all(np.isfinite(weights).all() for weights in setup.classifier.get_weights())


@pytest.mark.slow
def test_a_roll_back_is_tried_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = poison(monkeypatch, "head", 0)
    with pytest.raises(UserError, match=r"--head_learning_rate is too high for this network\. Received: 0.00125$"):
        train(tmp_path, divergence="rollback", head_learning_rate=0.01)
    assert rates == [0.01, 0.005, 0.0025, 0.00125]


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the step before was still finite."""

    class Poison(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            kernel = self.model.get_layer("head").kernel
            kernel.assign(np.full(kernel.shape, np.nan, np.float32))

    join_in(monkeypatch, Poison())
    with pytest.raises(UserError, match=r"^a weight is not finite at step 1: --head_learning_rate"):
        train(tmp_path, checkpoint_every_steps=1)
    state = Checkpoints(tmp_path / "checkpoints", 2).newest()
    assert state is not None
    assert all(np.isfinite(array).all() for array in state.arrays.values())


def failing(code: int, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let every save fail after so many."""
    save, count = np.savez, [0]

    def refuse(*arguments: Any, **arrays: Any) -> None:
        count[0] += 1
        if count[0] > after:
            raise OSError(code, os.strerror(code))
        save(*arguments, **arrays)

    monkeypatch.setattr(np, "savez", refuse)


def test_a_full_disk_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(errno.ENOSPC, monkeypatch, after=1)
    done, _, log = train(tmp_path)
    assert list(done.progress.summaries) == ["head", "finetune"]
    assert log.records[-1]["step"] == 16
    assert "warning: the checkpoint was not saved, the disk is full; the one before is kept" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000001"]


def test_a_workdir_that_became_read_only_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(errno.EROFS, monkeypatch, after=2)
    with pytest.raises(OSError, match="Read-only file system"):
        train(tmp_path)


def test_a_workdir_that_was_removed_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    class Remove(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            shutil.rmtree(folder)

    join_in(monkeypatch, Remove())
    with pytest.raises(FileNotFoundError):
        train(folder)
    assert not folder.exists()


class Signal(keras.callbacks.Callback):
    """Sends a signal to this process at a step, at a batch of validation, or at the end of an epoch."""

    def __init__(
        self, number: signal.Signals, step: int = -1, validation_batch: int = -1, last_epoch: int = -1
    ) -> None:
        super().__init__()
        self._number, self._step, self._validation_batch = number, step, validation_batch
        self._last_epoch = last_epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == self._last_epoch:
            os.kill(os.getpid(), self._number)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == self._step:
            os.kill(os.getpid(), self._number)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == self._validation_batch:
            os.kill(os.getpid(), self._number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "position"),
    [
        (Signal(signal.SIGTERM, step=1), {"phase": 0, "epoch": 0, "step": 2}),
        (Signal(signal.SIGINT, step=0), {"phase": 0, "epoch": 0, "step": 1}),
        # At the last step of an epoch and in its validation nothing is saved: the run goes on from the checkpoint before.
        (Signal(signal.SIGTERM, step=3), {"phase": 0, "epoch": 0, "step": 0}),
        (Signal(signal.SIGTERM, validation_batch=1), {"phase": 0, "epoch": 0, "step": 0}),
        # When nothing of the last phase is left to end, its end is saved.
        (Signal(signal.SIGTERM, last_epoch=3), {"phase": 2, "epoch": 4, "step": 0}),
    ],
)
def test_a_run_that_is_asked_to_end_saves_itself_and_goes_on_with_the_same_bits(
    callback: Signal, position: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    wanted = train(tmp_path / "whole")[1].classifier.get_weights()
    folder = tmp_path / "asked"
    folder.mkdir()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        join_in(patch, callback)
        with pytest.raises(InterruptedRunError, match=r"asked to end \(SIG(TERM|INT)\)\. .* --resume"):
            train(folder)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    state = Checkpoints(folder / "checkpoints", 2).newest()
    assert state is not None
    assert state.values["progress"]["position"] == position
    again = train(folder)[1].classifier.get_weights()
    assert all(np.array_equal(left, right) for left, right in zip(again, wanted, strict=True))


def test_a_phase_may_have_one_step_or_one_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch has no speed, and what has none is saved like any other."""
    flags: dict[str, Any] = {"head_epochs": 1, "finetune_epochs": 0}
    summaries = train(tmp_path, **flags, head_steps_per_epoch=1)[0].progress.summaries
    assert summaries["head"].pipeline_images_per_second is None
    folder = tmp_path / "asked"
    folder.mkdir()
    with monkeypatch.context() as patch:
        join_in(patch, Signal(signal.SIGTERM, step=2))  # of 0..3
        with pytest.raises(InterruptedRunError):
            train(folder, **flags)
    assert train(folder, **flags)[2].step == 4


def test_a_run_goes_on_with_as_many_devices_as_it_began_with(tmp_path: Path) -> None:
    trainer = train(tmp_path)[0]
    state = Checkpoints(tmp_path / "checkpoints", 2).newest()
    assert state is not None
    assert state.values["replicas"] == 1
    state.values["replicas"] = 2
    with pytest.raises(UserError, match=r"^--resume: the run began on 2 devices .*\. Received: 1 devices$"):
        trainer.train(state)


def test_a_second_signal_does_not_wait_and_other_threads_do_not_listen() -> None:
    interruption = Interruption()
    with interruption.listening(), interruption.waiting():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked
        with pytest.raises(InterruptedRunError):
            os.kill(os.getpid(), signal.SIGTERM)
    seen: list[bool] = []

    def elsewhere() -> None:
        with contextlib.suppress(ValueError), Interruption().listening():
            seen.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [True]
