import json
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_keras.config import FinetuneConfig, HeadConfig
from cifar_keras.errors import DivergedError
from cifar_keras.training.phases import Phase, finetune_phase, head_phase
from cifar_keras.training.tracking import LogPhase, RunLog


def linear_model(rate: float = 0.01) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="zeros")])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")])
    return model


def some_data(count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    features = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    return features, np.eye(2, dtype=np.float32)[(features[:, 0] > 0).astype(int)]


def fit(
    model: keras.Model,
    log: RunLog,
    phase: Phase,
    steps: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> LogPhase:
    """Fit with the callbacks, which are one `LogPhase` where none are given; return the first."""
    features, labels = some_data(8 * steps)
    callbacks = callbacks or [LogPhase(log, phase, global_batch_size=8)]
    epochs = range(phase.first_epoch, phase.first_epoch + phase.config.epochs)
    model.fit(
        features,
        labels,
        batch_size=8,
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        validation_data=some_data(16),
        callbacks=list(callbacks),
        verbose=0,
    )
    first = callbacks[0]
    assert isinstance(first, LogPhase)
    return first


def test_both_phases_share_one_axis_in_the_file_and_in_tensorboard(tmp_path: Path) -> None:
    log, model = RunLog(tmp_path), linear_model()
    head = head_phase(HeadConfig(epochs=2), 25, image_size=16, first_epoch=0)
    finetune = finetune_phase(FinetuneConfig(epochs=1), 25, image_size=16, first_epoch=2)
    fit(model, log, head, 25)
    fit(model, log, finetune, 25)
    log.write_text("config", "|a|b|")
    log.close()

    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == log.records
    assert [record["step"] for record in records] == [10, 20, 25, 30, 40, 50, 60, 70, 75]
    assert [record["epoch"] for record in records] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [record["phase"] for record in records] == ["head"] * 6 + ["finetune"] * 3
    epoch_ends = [record for record in records if "validation_accuracy" in record]
    assert [record["step"] for record in epoch_ends] == [25, 50, 75]
    assert all(record["learning_rate"] == pytest.approx(0.01) for record in records)

    for split, wanted in (("train", [record["step"] for record in records]), ("validation", [25, 50, 75])):
        events = EventAccumulator(str(tmp_path / "tensorboard" / split), size_guidance={"tensors": 0}).Reload()
        assert [event.step for event in events.Tensors("loss")] == wanted
    train = EventAccumulator(str(tmp_path / "tensorboard" / "train")).Reload()
    assert {"loss", "accuracy", "learning_rate", "images_per_second", "config"} <= set(train.Tags()["tensors"])


def test_speed_counts_neither_first_steps_nor_validation(tmp_path: Path) -> None:
    clock = iter([0.0, 5.0, 6.0, 7.0, 100.0, 109.0, 110.0, 111.0])  # begin, then three steps; twice
    phase = head_phase(HeadConfig(epochs=2), 3, image_size=16, first_epoch=0)
    callback = LogPhase(RunLog(tmp_path), phase, global_batch_size=8)
    callback.set_model(linear_model())
    assert callback.images_per_second is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cifar_keras.training.tracking.time.monotonic", lambda: next(clock))
        for epoch in range(2):
            callback.on_epoch_begin(epoch)
            for batch in range(3):
                callback.on_train_batch_begin(batch)
                callback.on_train_batch_end(batch, {"loss": 1.0})
    assert callback.images_per_second == pytest.approx(4 * 8 / 4.0)  # two timed steps of 1 s in each epoch


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_rate(tmp_path: Path) -> None:
    model, log = linear_model(rate=1e38), RunLog(tmp_path)
    phase = finetune_phase(FinetuneConfig(learning_rate=7.5), 25, image_size=16, first_epoch=0)
    with pytest.raises(DivergedError, match=r"not finite at step \d+$"):
        fit(model, log, phase, 25)
