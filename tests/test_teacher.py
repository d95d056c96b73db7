import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from small_runs import SHORT, finish_small_run, prepare_small, small_config, train_small

from cifar_keras.config import DistillationConfig
from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.splits import make_splits
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.errors import UserError
from cifar_keras.exporting.saved_model import check_classes, load_saved_model
from cifar_keras.training.teacher import (
    DistillationLoss,
    keep_teacher_logits,
    read_teacher_logits,
    teacher_logits,
    with_teacher,
)
from cifar_keras.training.tracking import RunLog

GENERATOR = np.random.default_rng(0)
STUDENT = GENERATOR.normal(size=(6, 4)).astype(np.float32)
TEACHER = 3 * GENERATOR.normal(size=(6, 4)).astype(np.float32)
LABELS = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]


def loss_of(student: tf.Tensor, weight: float, temperature: float, label_smoothing: float = 0.0) -> tf.Tensor:
    config = DistillationConfig("teacher", weight, temperature)
    return DistillationLoss(config, label_smoothing)(tf.concat([LABELS, TEACHER], axis=1), student)


def test_the_loss_is_the_papers() -> None:
    def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
        return values

    weight, temperature, smoothing = 0.3, 2.5, 0.1
    soft = np.exp(log_softmax(TEACHER / temperature))
    distance = (soft * (np.log(soft) - log_softmax(STUDENT / temperature))).sum(axis=1)
    smoothed = 0.9 * LABELS + 0.1 / 4
    hard = -(smoothed * log_softmax(STUDENT)).sum(axis=1)
    wanted = (0.7 * hard + 0.3 * temperature**2 * distance).mean()
    assert float(loss_of(STUDENT, weight, temperature, smoothing)) == pytest.approx(wanted, rel=1e-5)
    assert float(loss_of(TEACHER, 1.0, temperature)) == pytest.approx(0, abs=1e-6)


def test_at_a_high_temperature_it_matches_logits() -> None:
    """Section 2.1: the gradient becomes the difference of the logits, each less its mean, over the number of classes."""
    student = tf.Variable(STUDENT)
    with tf.GradientTape() as tape:
        loss = loss_of(student, 1.0, 1000.0)
    centred = (logits - logits.mean(axis=1, keepdims=True) for logits in (STUDENT, TEACHER))
    wanted = np.subtract(*centred) / 4 / len(STUDENT)
    np.testing.assert_allclose(tape.gradient(loss, student), wanted, rtol=0.02, atol=1e-3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_small_run(tmp_path_factory.mktemp("runs") / "teacher")


def test_the_teacher_looks_at_both_ways(teacher: Path, tmp_path: Path) -> None:
    splits = make_splits(make_dataset(0), 0.1, seed=0)
    model = load_saved_model(teacher)
    file = tmp_path / "kept" / "teacher_logits.npz"
    logits = teacher_logits(model, splits, batch_size=50)
    for name in ("train", "validation"):
        images = getattr(splits, name).images
        both = [model.serve(view)["logits"].numpy() for view in (images, np.ascontiguousarray(images[:, :, ::-1]))]
        np.testing.assert_allclose(logits[name], np.mean(both, axis=0), rtol=1e-4, atol=1e-4)
    assert read_teacher_logits(file) is None
    keep_teacher_logits(logits, file)
    again = read_teacher_logits(file)
    assert again is not None
    assert again.keys() == logits.keys()
    assert all(np.array_equal(again[name], logits[name]) for name in logits)
    file.write_bytes(file.read_bytes()[:1000])
    assert read_teacher_logits(file) is None


def test_a_teacher_that_cannot_teach_is_named(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--teacher has to name a run's workdir, .*saved_model\.pb\. Received: "):
        load_saved_model(tmp_path, "teacher")
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "saved_model.pb").write_bytes(b"text")
    with pytest.raises(UserError, match=r"^--teacher cannot be loaded: Cannot parse file .*\. Received: "):
        load_saved_model(tmp_path, "teacher")
    shutil.rmtree(tmp_path / "saved_model")
    tf.saved_model.save(tf.Module(), str(tmp_path / "saved_model"))
    with pytest.raises(UserError, match=r"^--teacher has no signatures .*\. Received: "):
        load_saved_model(tmp_path, "teacher")
    model = load_saved_model(teacher, "teacher")
    check_classes(model, CLASS_NAMES, "a run", "teacher")
    with pytest.raises(UserError, match=r"^--teacher tells other classes apart: airplane, .*\. Received: a run$"):
        check_classes(model, CLASS_NAMES[:9], "a run", "teacher")


@pytest.mark.parametrize("cached", [True, False])
def test_a_student_believes_its_teacher(cached: bool, tmp_path: Path) -> None:
    """The labels it is given are wrong, and weigh nothing (weight 1); the teacher says what each image is."""
    settings = SHORT | {"distillation_weight": 1.0, "distillation_temperature": 1.0, "finetune_cached_features": cached}
    settings |= {"head_epochs": 20, "finetune_epochs": 4, "finetune_learning_rate": 0.003}
    config = small_config(**settings)
    plain = prepare_small(config)
    truth, wrong = (np.roll(np.asarray(plain.train.labels), shift, axis=1) for shift in (0, 3))
    setup = plain._replace(
        train=with_teacher(plain.train._replace(labels=tf.constant(wrong)), 8 * truth),
        validation=with_teacher(plain.validation, 8 * np.asarray(plain.validation.labels)),
        distillation=config.distillation,
    )
    log = RunLog(tmp_path)
    train_small(config, setup, log, tmp_path)
    logits = setup.classifier.predict(setup.dataset.train.images, verbose=0)
    assert (logits.argmax(axis=1) == setup.dataset.train.labels).mean() > 0.6
    # What is logged is measured against the labels all the same.
    assert log.records[-1]["accuracy"] < 0.3
    assert log.records[-1]["validation_accuracy"] > 0.5
