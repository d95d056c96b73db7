"""Data sets of 2, 10, 100 and 1,000 classes: what a run measures of them, and whether a person can read it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from processes import run
from sklearn import metrics as sklearn_metrics

from cifar_keras.data import synthetic
from cifar_keras.evaluation.galleries import most_confused_classes
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.reporting import figures
from cifar_keras.reporting.tables import metrics_table

HERE = Path(__file__).parent
MOST_PIXELS = 2000  # of a side, so that a page can show it


def predictions(classes: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Logits that are right more often than not, their labels, and names of the classes."""
    generator = np.random.default_rng(classes)
    labels = generator.integers(classes, size=count)
    logits = generator.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 3
    return logits, labels, [f"class {index}" for index in range(classes)]


@pytest.mark.parametrize("classes", [2, 100])
def test_metrics_of_any_number_of_classes_are_scikit_learns(classes: int) -> None:
    logits, labels, names = predictions(classes, 700)
    found, predicted = classification_metrics(logits, labels, names), logits.argmax(axis=1)
    report = sklearn_metrics.classification_report(
        labels, predicted, labels=range(classes), target_names=names, output_dict=True, zero_division=0
    )
    for name in names:
        values, wanted = found["per_class"][name], report[name]
        assert (values["precision"], values["recall"], values["f1"], values["support"]) == pytest.approx(
            (wanted["precision"], wanted["recall"], wanted["f1-score"], wanted["support"])
        )
        assert all(low <= values[rate] <= high for rate, (low, high) in values["intervals"].items())
    assert found["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])


@pytest.mark.slow
def test_a_thousand_classes_are_measured_in_less_than_a_gigabyte() -> None:
    """The one-hot cells of a confusion matrix would take 80 GB for 10,000 images."""
    program = (
        "import numpy as np, test_many_classes as t\n"
        "from cifar_keras.files.environment import peak_gib\n"
        "found = t.classification_metrics(*t.predictions(1000, 10_000))\n"
        "print(len(found['per_class']), found['intervals']['macro_recall'], peak_gib())"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("1000 [0.")
    assert (
        float(done.stdout.split()[-1]) < 1.7
    )  # with TensorFlow, which the tests' modules import and which takes 0.6 itself


@pytest.mark.parametrize("classes", [2, 10, 100, pytest.param(1000, marks=pytest.mark.slow)])
def test_pictures_and_tables_fit_a_page(classes: int) -> None:
    logits, labels, names = predictions(classes, 1200)
    confusion = sklearn_metrics.confusion_matrix(labels, logits.argmax(axis=1), labels=range(classes))
    for picture in (
        figures.confusion_matrix_picture(confusion, names),
        figures.feature_map_picture(logits[:, :2], labels, names, np.array([0.4, 0.2])),
    ):
        height, width, _ = tf.io.decode_png(picture).shape
        assert max(height, width) <= MOST_PIXELS
    intervals = {rate: [0.0, 1.0] for rate in ("precision", "recall", "f1")}
    figures_of_all = {"precision": 0.5, "recall": 0.5, "support": 7, "intervals": intervals}
    measured: dict[str, Any] = {
        **{"n": 1200, "accuracy": 0.5, "top5": 0.9, "loss": 1.0},
        "intervals": {"accuracy": [0.4, 0.6]} | {f"macro_{rate}": [0.0, 1.0] for rate in intervals},
        **{f"macro_{rate}": 0.5 for rate in intervals},
        "per_class": {name: figures_of_all | {"f1": (index * 37 % 101) / 101} for index, name in enumerate(names)},
    }
    lines = metrics_table(measured, "test").splitlines()
    assert len(lines) <= 29
    shown = [name for name in names if any(line.startswith(f"{name} ") for line in lines)]
    assert len(shown) == min(classes, 20)
    assert any(f"and {classes - 20:,} classes with a higher F1" in line for line in lines) == (classes > 20)
    worst = sorted(names, key=lambda name: measured["per_class"][name]["f1"])[:20]
    assert set(shown) == set(worst)


def test_the_confused_classes_are_those_with_the_most_errors() -> None:
    confusion = np.array([[5, 0, 0, 0], [0, 1, 3, 0], [0, 1, 4, 0], [1, 0, 0, 9]])
    # Errors as label and as prediction: 1, 4, 4, 1.
    assert most_confused_classes(confusion, 2).tolist() == [1, 2]
    assert most_confused_classes(confusion, 3).tolist() == [0, 1, 2]
    assert most_confused_classes(confusion, 9).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("classes", [2, 10, 23, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_synthetic_set_has_the_classes_that_are_asked_for(classes: int) -> None:
    dataset = synthetic.make_dataset(0, classes)
    assert len(dataset.class_names) == len(set(dataset.class_names)) == classes
    assert np.bincount(dataset.train.labels).tolist() == [40] * classes
    assert np.bincount(dataset.test.labels).tolist() == [10] * classes
    # A class is known by its mean colour and by the direction in which brightness changes: no two have both.
    images = dataset.train.images[:].astype(np.float32)
    grey = images.mean(axis=3)
    rows, columns = (np.diff(grey, axis=axis)[:, :31, :31] for axis in (1, 2))
    features = [*images.mean(axis=(1, 2)).T, *((a * b).mean(axis=(1, 2)) for a, b in ((rows, rows), (rows, columns)))]
    means = np.array(
        [[feature[dataset.train.labels == index].mean() for feature in features] for index in range(classes)]
    )
    spread = np.array([feature.std() for feature in features])
    distances = np.abs((means[:, None] - means[None]) / spread).max(axis=2) + np.eye(classes)
    assert distances.min() > 0.03


@pytest.mark.slow
def test_a_run_of_a_hundred_classes_ends_with_a_report(tmp_path: Path) -> None:
    """End to end: train, evaluate and compare, by the commands."""
    flags = shlex.split(
        "--dataset=synthetic --synthetic_classes=100 --backbone=resnet20 --weights=none --image_size=32 --finetune_train_batch_norm "
        "--head_epochs=0 --finetune_epochs=1 --finetune_steps_per_epoch=5 --global_batch_size=40"
    )
    for number, rate in enumerate((0.003, 0.03)):
        done = run("train", *flags, f"--finetune_learning_rate={rate}", f"--workdir=run{number}", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "run0" / "result.json").read_text())
    assert (result["test"]["n"], len(result["test"]["per_class"])) == (1000, 100)
    assert "and 80 classes with a higher F1" in done.stdout
    card, page = ((tmp_path / "run0" / name).read_text() for name in ("model_card.md", "report.html"))
    assert "It tells 100 classes apart: class 0, class 1" in card
    assert "and 80 others" in card
    assert "the 20 classes with the lowest F1" in card
    assert len(page) < 3_000_000
    done = run("evaluate", "--model=run0", "--test_time_augmentation=flip", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("compare", "run0", "run1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run1" in done.stdout
