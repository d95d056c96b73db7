"""Stages of the finetune phase: how they are planned, and that they are one phase to schedule, optimizer and state."""

import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from small_runs import SHORT, set_up_small, small_config, train_small
from test_trainer import Signal, join_in

from cifar_keras.config import FinetuneConfig, finetune_stages, from_values, validate
from cifar_keras.errors import InterruptedRunError, UserError
from cifar_keras.training import trainer as trainer_lib
from cifar_keras.training.checkpoints import Checkpoints
from cifar_keras.training.fit import fit_phase
from cifar_keras.training.optimizers import FusedAdam
from cifar_keras.training.phases import Stage, finetune_phase, plan_phases, whole_steps
from cifar_keras.training.schedules import warmup_cosine
from cifar_keras.training.tracking import RunLog


def test_whole_steps() -> None:
    assert whole_steps(45_000, 64, 0, "head_steps_per_epoch") == 703
    assert whole_steps(45_000, 64, 703, "head_steps_per_epoch") == 703
    assert whole_steps(64, 64, 1, "head_steps_per_epoch") == 1
    with pytest.raises(UserError, match=r"--finetune_steps_per_epoch .* 703.* Received: 704$"):
        whole_steps(45_000, 64, 704, "finetune_steps_per_epoch")
    with pytest.raises(UserError, match=r"--global_batch_size .* 63.* Received: 64$"):
        whole_steps(63, 64, 0, "head_steps_per_epoch")


@pytest.mark.parametrize(
    ("flags", "stages"),
    [
        ({}, [(0, "", 3)]),
        ({"unfreeze_from": "conv3", "image_size": 48}, [(48, "conv3", 3)]),
        ({"image_sizes": "64,96,128"}, [(64, "", 1), (96, "", 1), (128, "", 1)]),
        ({"image_sizes": "64,96", "epochs": 4}, [(64, "", 2), (96, "", 2)]),
        ({"unfreeze_from": "conv5,conv3,"}, [(0, "conv5", 1), (0, "conv3", 1), (0, "", 1)]),
        ({"unfreeze_from": "conv5,", "image_sizes": "64,96", "stage_epochs": "1,2"}, [(64, "conv5", 1), (96, "", 2)]),
        (
            {"unfreeze_from": "conv4", "image_sizes": "64,96", "stage_epochs": "2,1"},
            [(64, "conv4", 2), (96, "conv4", 1)],
        ),
        ({"image_sizes": "64,96,128", "stage_epochs": "1"}, [(64, "", 1), (96, "", 1), (128, "", 1)]),
        ({"image_sizes": "64"}, [(64, "", 3)]),
    ],
)
def test_stages_are_those_of_the_lists(flags: dict[str, Any], stages: list[tuple[int, str, int]]) -> None:
    assert finetune_stages(FinetuneConfig(**flags)) == stages


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"image_sizes": "64,96", "unfreeze_from": "conv5,conv4,"},
            r"--finetune_image_sizes and --finetune_unfreeze_from .* 2, 3$",
        ),
        ({"image_sizes": "64,96"}, r"--finetune_epochs has to be a multiple of the 2 stages.* Received: 3$"),
        (
            {"image_sizes": "64,96", "stage_epochs": "1,1"},
            r"--finetune_stage_epochs has to add up .* Received: 1,1 and 3$",
        ),
        (
            {"image_sizes": "64,96,128", "stage_epochs": "2"},
            r"--finetune_stage_epochs has to add up .* Received: 2 and 3$",
        ),
        ({"image_sizes": "64,,128"}, r"--finetune_image_sizes has to list whole numbers .* Received: 64,,128$"),
        ({"image_sizes": "64,big,128"}, r"--finetune_image_sizes has to list whole numbers .* Received: 64,big,128$"),
        ({"stage_epochs": "0,3"}, r"--finetune_stage_epochs has to list whole numbers .* Received: 0,3$"),
        ({"stage_epochs": "1,\u00b2"}, r"--finetune_stage_epochs has to list whole numbers "),
        ({"image_sizes": "64,96,128", "image_size": 64}, r"cannot both be given\. Received: 64,96,128 and 64$"),
        ({"image_sizes": "64,16,128"}, r"--finetune_image_sizes have to be at least 32 .* Received: 64,16,128$"),
        (
            {"unfreeze_from": "conv5,conv9,"},
            r"--finetune_unfreeze_from has to be a block group of resnet50 .* Received: conv5,conv9,$",
        ),
    ],
)
def test_lists_that_do_not_fit_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(from_values({f"finetune_{name}": value for name, value in flags.items()}))


def test_a_phase_is_its_stages() -> None:
    settings = FinetuneConfig(epochs=5, image_sizes="16,24,32", stage_epochs="2,1,2")
    phase = finetune_phase(settings, 10, image_size=99, first_epoch=3)
    assert phase.stages == (Stage(16, "", 2), Stage(24, "", 1), Stage(32, "", 2))
    assert (phase.epochs, phase.steps) == (range(3, 8), 50)
    assert [tuple(left) for left in phase.stages_from(3)] == [
        (0, phase.stages[0], range(3, 5)),
        (1, phase.stages[1], range(5, 6)),
        (2, phase.stages[2], range(6, 8)),
    ]
    assert next((left.number, left.epochs) for left in phase.stages_from(4)) == (0, range(4, 5))
    assert [(left.number, left.epochs) for left in phase.stages_from(5)] == [(1, range(5, 6)), (2, range(6, 8))]
    assert list(phase.stages_from(8)) == []


def test_a_phase_without_lists_has_one_stage_of_its_own_size() -> None:
    values = {"head_image_size": 48, "image_size": 96, "finetune_epochs": 2, "finetune_unfreeze_from": "conv3"}
    head, finetune = plan_phases(from_values(values), 64)
    assert head.stages == (Stage(48, None, 1),)
    assert finetune.stages == (Stage(96, "conv3", 2),)


# Training in stages, on the small network.

STAGES: dict[str, Any] = {
    **SHORT,
    "head_cached_features": False,
    "finetune_cached_features": False,
    "finetune_epochs": 3,
    "finetune_unfreeze_from": "conv2,,",
    "finetune_image_sizes": "12,16,20",
    "checkpoint_every_steps": 2,
}


class Look(keras.callbacks.Callback):
    """Notes at each epoch of the finetune phase what is fitted, and the rate of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.learning: list[int] = []
        self.iterations: list[int] = []
        self.moments: list[NDArray[np.float32]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        backbone = self.model.get_layer("backbone")
        self.sizes.append(backbone.input.shape[1])
        self.learning.append(len(self.model.trainable_variables))
        self.iterations.append(int(self.model.optimizer.iterations))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.moments.append(np.asarray(self.model.optimizer.variables[-2]))


def train(folder: Path, **flags: Any) -> tuple[Any, list[NDArray[Any]], RunLog]:
    folder.mkdir(exist_ok=True)
    config = small_config(**STAGES | flags)
    setup, log = set_up_small(config), RunLog(folder)
    trainer = train_small(config, setup, log, folder)
    return trainer, setup.classifier.get_weights(), log


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_stages_share_the_schedule_and_the_optimizers_state(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look()
    join_in(monkeypatch, look)
    _, _, log = train(tmp_path, finetune_optimizer=optimizer, finetune_learning_rate=0.001)
    # The head phase has two epochs of four steps at 16 px.
    assert look.sizes == [16, 16, 12, 16, 20]
    assert look.learning == [2, 2, 4, 6, 6]
    assert look.iterations == [0, 4, 0, 4, 8]
    schedule = warmup_cosine(0.001, 12, 0.1)
    rates = [record["learning_rate"] for record in log.records if record["phase"] == "finetune"]
    assert rates == pytest.approx([float(schedule(step)) for step in (1, 3, 7, 11)], rel=1e-5)
    assert [record["epoch"] for record in log.records if "validation_loss" in record] == [0, 1, 2, 3, 4]


def test_what_begins_to_learn_later_is_updated_as_if_it_were_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's first update is the rate times the sign of the gradient, whatever the step of the phase is."""
    moved: list[float] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.kernel = np.asarray(self.model.get_layer("backbone").get_layer("conv1_conv").convolution.kernel)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = np.asarray(self.model.get_layer("backbone").get_layer("conv1_conv").convolution.kernel)
            moved.append(float(np.median(np.abs(now - self.kernel))))

    join_in(monkeypatch, Watch())
    trainer, _, _ = train(tmp_path, finetune_optimizer="adamw", finetune_learning_rate=0.001, head_epochs=0)
    assert moved[:4] == [0.0] * 4  # of the first stage
    rate = float(warmup_cosine(0.001, 12, 0.1)(4))
    assert moved[4] == pytest.approx(rate, rel=0.01)
    assert trainer.progress.first_steps == {}  # of the phase that is done


def test_the_bias_of_moments_is_corrected_by_the_steps_since() -> None:
    variables = [keras.Variable([1.0, 2.0], name=name) for name in ("early", "late")]
    optimizer, plain = FusedAdam(0.1), keras.optimizers.Adam(0.1)
    fresh = keras.Variable([1.0, 2.0], name="fresh")
    optimizer.build(variables)
    plain.build([fresh])
    optimizer.iterations.assign(7)
    optimizer.first_steps = [0, 7]
    gradient = tf.constant([0.3, -0.2])
    for _ in range(3):
        optimizer.apply([gradient, gradient])
        plain.apply([gradient])
    np.testing.assert_allclose(variables[1], fresh, rtol=1e-5)
    assert np.abs(np.asarray(variables[0]) - np.asarray(fresh)).max() > 0.05


INTERRUPTED_AT = [(2, 1), (2, 3), (3, 0), (3, 2), (4, 1)]  # epoch and step
AT_ONCE = ((3, 2, "adamw"),)  # the others wait for the slow tier


@pytest.mark.parametrize(
    ("epoch", "step", "optimizer"),
    [
        pytest.param(*case, marks=() if case in AT_ONCE else pytest.mark.slow)
        for case in [(*place, optimizer) for place in INTERRUPTED_AT for optimizer in ("sgd", "adamw")]
    ],
)
def test_a_run_that_is_interrupted_in_a_stage_goes_on_with_the_same_bits(
    epoch: int, step: int, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a stage, and where one begins: the optimizer's state is then that of the stage before."""
    flags = {"finetune_optimizer": optimizer, "finetune_learning_rate": 0.001}
    _, wanted, log = train(tmp_path / "whole", **flags)

    def fit(model: Any, phase: Any, batches: Any, validation: Any, callbacks: Any, **settings: Any) -> None:
        if phase.name == "finetune" and epoch in settings["epochs"]:
            callbacks = [Signal(signal.SIGTERM, step=step), *callbacks]
        fit_phase(model, phase, batches, validation, callbacks, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_lib, "fit_phase", fit)
        with pytest.raises(InterruptedRunError):
            train(tmp_path / "asked", **flags)
    state = Checkpoints(tmp_path / "asked" / "checkpoints", 2).newest()
    assert state is not None
    assert state.values["progress"]["position"]["epoch"] == epoch
    _, again, log_again = train(tmp_path / "asked", **flags)
    assert all(np.array_equal(left, right) for left, right in zip(again, wanted, strict=True))
    assert metrics_of(log_again) == metrics_of(log)


@pytest.mark.slow
def test_only_an_epoch_of_the_last_stage_can_be_the_best(tmp_path: Path) -> None:
    """The others are measured at another image size, or with less that learned; the head phase's best can be."""
    trainer, _, log = train(tmp_path)
    figures = {
        record["epoch"]: (record["validation_accuracy"], -record["validation_cross_entropy"])
        for record in log.records
        if "validation_loss" in record
    }
    assert trainer._keep_best.best == pytest.approx(max(figures[epoch] for epoch in (0, 1, 4)))


def metrics_of(log: RunLog) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in log.records]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"finetune_image_sizes": "", "finetune_image_size": 12}, {"finetune_image_sizes": "12"}),
        # Nothing is lost where a stage begins.
        ({"finetune_image_sizes": "16"}, {"finetune_image_sizes": "16,16,16"}),
    ],
)
def test_stages_that_are_alike_are_one(one: dict[str, Any], other: dict[str, Any], tmp_path: Path) -> None:
    conv2 = {"finetune_unfreeze_from": "conv2", "finetune_optimizer": "adamw"}
    found, wanted = (train(tmp_path / name, **conv2 | flags)[2] for name, flags in (("one", one), ("other", other)))
    assert metrics_of(found) == metrics_of(wanted)
