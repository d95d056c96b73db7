"""Operations of training, counted by hand for the small network: `small_networks.small_backbone` at 16 px and a head of 10 classes."""

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from small_runs import BATCH, SHORT, TRAIN, VALIDATION, finish_small_run, set_up_small, small_config, train_small

from cifar_keras.training.setup import RunSetup, ask_teacher
from cifar_keras.training.teacher import Teacher
from cifar_keras.training.tracking import RunLog

# Two for each multiply-accumulate. 3x3 kernels without padding and of stride 2: 16 px become 7, and 7 become 3.
FIRST, SECOND, HEAD = 2 * 7 * 7 * 9 * 3 * 8, 2 * 3 * 3 * 9 * 8 * 16, 2 * 16 * 10
FORWARD = FIRST + SECOND + HEAD
SEEN = TRAIN // BATCH * BATCH  # images of an epoch's training steps
UNCACHED = {"head_cached_features": False, "finetune_cached_features": False}


def counted(folder: Path, **flags: Any) -> list[float]:
    """The operations at the end of each epoch."""
    config = small_config(**SHORT | flags)
    return train_and_count(config, set_up_small(config), folder)


def train_and_count(config: Any, setup: RunSetup, folder: Path) -> list[float]:
    log = RunLog(folder)
    trainer = train_small(config, setup, log, folder)
    epochs = [1e15 * record["training_pflop"] for record in log.records if "training_pflop" in record]
    assert 1e15 * trainer.history()["training_pflop"] == pytest.approx(epochs[-1])
    assert [record["epoch"] for record in log.records if "training_pflop" in record] == list(range(len(epochs)))
    return epochs


def test_frozen_layers_compute_forward_alone(tmp_path: Path) -> None:
    head = FORWARD * (SEEN + VALIDATION) + HEAD * SEEN
    # The second convolution learns; nothing below it needs the gradient of its input.
    finetune = FORWARD * (SEEN + VALIDATION) + (SECOND + 2 * HEAD) * SEEN
    wanted = [head, 2 * head, 2 * head + finetune, 2 * (head + finetune)]
    assert counted(tmp_path, **UNCACHED) == pytest.approx(wanted)


def test_all_layers_learn_at_another_image_size(tmp_path: Path) -> None:
    """At 32 px: 32 become 15, and 15 become 7. The first convolution's input needs no gradient."""
    first, second = FIRST * 15**2 / 7**2, SECOND * 7**2 / 3**2
    steps = (first + second + HEAD) + first + 2 * second + 2 * HEAD
    wanted = steps * SEEN + (first + second + HEAD) * VALIDATION
    flags = {"finetune_unfreeze_from": "", "head_epochs": 0, "finetune_epochs": 1, "finetune_image_size": 32}
    assert counted(tmp_path, **UNCACHED | flags) == pytest.approx([wanted])


def test_cached_features_are_computed_once(tmp_path: Path) -> None:
    """Here each image has one view."""
    ahead = (FIRST + SECOND) * (TRAIN + VALIDATION)
    head = HEAD * (SEEN + VALIDATION) + HEAD * SEEN
    ahead_again = FIRST * (TRAIN + VALIDATION)
    finetune = (SECOND + HEAD) * (SEEN + VALIDATION) + (SECOND + 2 * HEAD) * SEEN
    after_head = ahead + 2 * head
    wanted = [ahead + head, after_head, after_head + ahead_again + finetune, after_head + ahead_again + 2 * finetune]
    assert counted(tmp_path, head_cached_features=True) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("crop_padding", "ahead", "in_an_epoch"),
    # With flips alone it is asked ahead about both views; with a crop, in each step. Of validation it sees the image.
    [(0, 2 * TRAIN + VALIDATION, 0), pytest.param(1, VALIDATION, SEEN, marks=pytest.mark.slow)],
)
def test_a_teachers_answers_count(crop_padding: int, ahead: int, in_an_epoch: int, tmp_path: Path) -> None:
    teacher = str(finish_small_run(tmp_path / "teacher"))
    flags = UNCACHED | {"flip": True, "crop_padding": crop_padding, "teacher": teacher}
    config = small_config(**SHORT | flags | {"head_epochs": 0})
    setup = set_up_small(config)._replace(teacher=Teacher(config, tmp_path / "kept", tf.distribute.get_strategy()))
    assert setup.teacher is not None
    setup.teacher.check_is_there()
    (tmp_path / "run").mkdir()
    epoch = FORWARD * (SEEN + VALIDATION) + (SECOND + 2 * HEAD) * SEEN + FORWARD * in_an_epoch
    wanted = [FORWARD * ahead + epoch, FORWARD * ahead + 2 * epoch]
    assert train_and_count(config, ask_teacher(setup), tmp_path / "run") == pytest.approx(wanted)


def test_what_was_asked_counts_when_the_teacher_is_gone(tmp_path: Path) -> None:
    teacher = finish_small_run(tmp_path / "teacher")
    config = small_config(**SHORT | {"crop_padding": 0, "teacher": str(teacher)})
    first = Teacher(config, tmp_path / "kept", tf.distribute.get_strategy())
    first.check_is_there()
    setup = ask_teacher(set_up_small(config)._replace(teacher=first))
    totals = {"train": setup.train.total, "validation": setup.validation.total}
    teacher.rename(tmp_path / "elsewhere")
    again = Teacher(config, tmp_path / "kept", tf.distribute.get_strategy())
    again.check_is_there()
    assert again.operations_ahead(totals) == first.operations_ahead(totals) == FORWARD * (TRAIN + VALIDATION)
