"""A set of 95 % and 5 %, end to end: what weighing the classes does to the rare one, and that a person can read it."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.datasets import load_digits
from small_runs import set_up_small, small_config, train_small

from cifar_keras import compare, run
from cifar_keras.config import RunConfig
from cifar_keras.data.types import Dataset, LabelledImages
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.metrics import TOP
from cifar_keras.evaluation.uncertainty import paired_differences, resampled_metrics
from cifar_keras.files import paths, writing
from cifar_keras.training.stopwatch import Stopwatch
from cifar_keras.training.tracking import RunLog

RARE = 8  # the digit that is most like others
RARE_IMAGES = 85  # so that 95.0 % are others
pytestmark = pytest.mark.slow

FLAGS: dict[str, Any] = {
    "choose_by": "balanced_accuracy",
    "global_batch_size": 32,
    "head_epochs": 4,
    "head_learning_rate": 0.003,
    "finetune_epochs": 4,
    "finetune_learning_rate": 0.001,
    "flip": False,  # a mirrored digit is none
    "data_source": "synthetic",  # so that nobody looks for CIFAR-10
    "weights": "none",
}


def eights_among_others() -> Dataset:
    """scikit-learn's digits at 16 px: 40 % of each class to train, 15 % for validation, 45 % for the test."""
    digits, generator = load_digits(), np.random.default_rng(0)
    others = generator.permutation(np.flatnonzero(digits.target != RARE))
    eights = generator.permutation(np.flatnonzero(digits.target == RARE))[:RARE_IMAGES]

    def split(begin: float, end: float) -> LabelledImages:
        chosen = [part[round(begin * len(part)) : round(end * len(part))] for part in (others, eights)]
        grey = (digits.images[np.concatenate(chosen)] * 255 / 16).astype(np.uint8)
        images = np.repeat(np.kron(grey, np.ones((1, 2, 2), np.uint8))[..., None], 3, axis=-1)
        return LabelledImages(images, np.repeat([0, 1], [len(part) for part in chosen]))

    return Dataset(split(0, 0.4), split(0.4, 0.55), split(0.55, 1), ("another", "eight"))


def finish(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train and finish a run as `run.run` does, with the small network, and return its result."""
    ready, log = set_up_small(config, dataset=eights_among_others()), RunLog(folder)
    run.describe_run(config, ready, folder, log)
    trainer = train_small(config, ready, log, folder)
    validated = run._validate(config, ready)
    history = trainer.history() | {"commit": ""}
    trained = run.Trained(
        config, folder, ready.dataset, ready.classifier, *validated, history=history, log=log, watch=Stopwatch()
    )
    # What reads a run checks its settings, and no network that can be asked for takes 16 px.
    readable = dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=32))
    return run.finish(trained._replace(config=readable))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The workdirs of two runs that differ in the weights of their classes alone."""
    folders = {}
    for class_weights in ("none", "auto"):
        folders[class_weights] = folder = tmp_path_factory.mktemp("runs") / class_weights
        folder.mkdir()
        finish(small_config(**FLAGS, class_weights=class_weights, workdir=str(folder)), folder)
    return folders


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_the_set_is_as_uneven_as_it_says() -> None:
    dataset = eights_among_others()
    for split in (dataset.train, dataset.validation, dataset.test):
        assert np.bincount(split.labels)[0] / len(split.labels) == pytest.approx(0.95, abs=0.005)


def test_weights_raise_the_mean_recall_by_more_than_chance(runs: dict[str, Path]) -> None:
    predictions = {name: np.load(folder / paths.PREDICTIONS) for name, folder in runs.items()}
    labels = predictions["none"]["test_labels"]
    logits = {name: kept["test_logits"] for name, kept in predictions.items()}
    statistics = {name: resampled_metrics(softmax(values), labels, top=TOP) for name, values in logits.items()}
    names = ("accuracy", "balanced_accuracy", "macro_f1")
    found = paired_differences(statistics["none"], statistics["auto"], names, len(labels), seed=0)
    print({name: result_of(folder)["test"]["confusion_matrix"] for name, folder in runs.items()}, found)
    recalls = {
        name: sklearn_metrics.balanced_accuracy_score(labels, values.argmax(axis=1)) for name, values in logits.items()
    }
    assert found["balanced_accuracy"].value == pytest.approx(recalls["auto"] - recalls["none"])
    assert found["balanced_accuracy"].interval.low > 0.1
    # It has its price.
    assert found["accuracy"].interval.high < 0


def test_the_results_have_averages_and_calibration_with_intervals(runs: dict[str, Path]) -> None:
    for folder in runs.values():
        result = result_of(folder)
        measured = result["test"] | {"calibrated": result["calibration"]["test"]["calibration_error"]}
        intervals = result["test"]["intervals"] | {
            "calibrated": result["calibration"]["test"]["intervals"]["calibration_error"]
        }
        for name in ("balanced_accuracy", "macro_recall", "weighted_f1", "calibration_error", "calibrated"):
            low, high = intervals[name]
            assert low <= measured[name] <= high, name
        assert result["test"]["balanced_accuracy"] == pytest.approx(result["test"]["macro_recall"])


def test_the_best_epoch_is_that_of_the_metric(runs: dict[str, Path]) -> None:
    """The validation of the classifier that came back, by scikit-learn, is the best of the log; and TensorBoard has it."""
    for folder in runs.values():
        records = [record for record in writing.read_json_lines(folder / paths.METRICS) if "validation_loss" in record]
        kept = np.load(folder / paths.PREDICTIONS)
        predicted = kept["validation_logits"].argmax(axis=1)
        best = max(record["validation_balanced_accuracy"] for record in records)
        assert best == pytest.approx(
            sklearn_metrics.balanced_accuracy_score(kept["validation_labels"], predicted), abs=1e-6
        )
        assert all(0 <= record["balanced_accuracy"] <= 1 for record in records)
        events = b"".join(file.read_bytes() for file in (folder / "tensorboard" / "validation").iterdir())
        assert b"balanced_accuracy" in events


def test_a_workdir_keeps_its_weights(runs: dict[str, Path]) -> None:
    weights = json.loads((runs["auto"] / "class_weights.json").read_text())
    labels = eights_among_others().train.labels
    wanted = len(labels) / (2 * np.bincount(labels))
    assert weights == {name: pytest.approx(weight) for name, weight in zip(("another", "eight"), wanted, strict=True)}
    assert not (runs["none"] / "class_weights.json").exists()


def test_compare_shows_what_it_did(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    compare.main(["compare", *map(str, runs.values())])
    said = capsys.readouterr().out
    means, paired = (table.splitlines() for table in said.split("\n\n")[2:])
    for line, folder in zip(means[1:], runs.values(), strict=True):
        result = result_of(folder)
        metrics = (result["test"]["balanced_accuracy"], result["calibration"]["test"]["calibration_error"])
        assert all(f" {100 * value:.2f} % (" in line for value in metrics)
    low, high = re.findall(r"\(([+-][\d.]+) to ([+-][\d.]+)\)", paired[1])[1]
    assert 10 < float(low) < float(high)
    print(said)


def test_the_pages_say_it(runs: dict[str, Path]) -> None:
    page, card = ((runs["auto"] / name).read_text() for name in (paths.REPORT, paths.MODEL_CARD))
    assert "<dt>balanced accuracy</dt>" in page
    assert "--class_weights=auto" in page
    assert "(by balanced accuracy)" in card
    assert "| **weighted mean** |" in card
