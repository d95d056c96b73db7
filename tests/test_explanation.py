import base64
import csv
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from sklearn import metrics as sklearn_metrics
from small_networks import small_classifier
from small_runs import finish_small_run
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.projector import projector_plugin

from cifar_keras import evaluate, explain, export
from cifar_keras.data import datasets
from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.splits import make_splits
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.data.types import contents_of
from cifar_keras.errors import UserError
from cifar_keras.evaluation.explanation import choose
from cifar_keras.exporting.saved_model import load_saved_model
from cifar_keras.files.finished_run import read_finished_run
from cifar_keras.models import classifier
from cifar_keras.reporting import explanation

DATASET = make_dataset(0)._replace(names=tuple(f"train[{place}]" for place in range(400)))
WRONG = np.arange(0, 400, 40)  # training images that are given the label of another class
DATASET.train.labels[WRONG] = (DATASET.train.labels[WRONG] + 5) % 10
SPLITS = make_splits(DATASET, 0.1, seed=0)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that says it began with ImageNet's weights; here they are those of another small classifier."""
    path = finish_small_run(tmp_path_factory.mktemp("runs") / "small", weights="imagenet")
    (path / "dataset.json").write_text(json.dumps({"digest": contents_of(SPLITS).digest}))
    with tf.summary.create_file_writer(str(path / "tensorboard" / "train")).as_default():
        tf.summary.scalar("loss", 1.0, step=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "make_classifier", lambda settings, count, **others: small_classifier())
        patch.setattr(datasets, "load_published", lambda settings, **others: DATASET)
        explain.main(["explain", f"--model={path}"])
    return path


@pytest.fixture(scope="module")
def found(workdir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workdir / "explanation.json").read_text())
    return content


def test_neighbours_are_those_of_the_models_own_features(workdir: Path, found: dict[str, Any]) -> None:
    """Plain Keras and NumPy."""
    model = keras.models.load_model(workdir / "model.keras")
    features = keras.Model(model.inputs, model.get_layer("head").input)
    of_test, of_train = (
        values / np.linalg.norm(values, axis=1, keepdims=True)
        for values in (features.predict(images, verbose=0) for images in (DATASET.test.images, SPLITS.train.images))
    )
    logits = np.load(workdir / "predictions.npz")["test_logits"].astype(np.float64) / 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = np.where(logits.argmax(axis=1) != DATASET.test.labels, probabilities.max(axis=1), 0)
    assert found["train_images"] == 360
    assert len(found["neighbours"]) == min((wrong > 0).sum(), explain.ERRORS) > 1
    for error, row in zip(np.argsort(-wrong), found["neighbours"], strict=False):
        assert row["confidence"] == pytest.approx(wrong[error])
        assert row["label"] == CLASS_NAMES[DATASET.test.labels[error]]
        assert row["predicted"] == CLASS_NAMES[logits[error].argmax()]
        cosines = of_train @ of_test[error]
        nearest = np.argsort(-cosines)[: explanation.NEIGHBOURS]
        np.testing.assert_allclose([image["cosine"] for image in row["nearest"]], cosines[nearest], atol=1e-4)
        labels = [CLASS_NAMES[label] for label in SPLITS.train.labels[nearest]]
        assert [image["label"] for image in row["nearest"]] == labels


def test_suspects_are_listed_by_their_place_in_the_train_set(workdir: Path, found: dict[str, Any]) -> None:
    with (workdir / "suspect_labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["suspects"]["suspects"] > 0
    assert found["suspects"]["images"] == 400
    assert len({int(row["index"]) for row in rows} & set(WRONG.tolist())) >= 7  # of ten
    for row in rows:
        assert row["label"] == CLASS_NAMES[DATASET.train.labels[int(row["index"])]] != row["likely"]
        assert row["name"] == f"train[{row['index']}]"
    confidences = [float(row["probability_of_label"]) for row in rows]
    assert confidences == sorted(confidences)
    shown = found["suspects"]["shown"]
    assert [str(row["index"]) for row in shown] == [row["index"] for row in rows[: explanation.SUSPECTS]]


def test_the_report_shows_them(workdir: Path, found: dict[str, Any]) -> None:
    html = (workdir / "report.html").read_text()
    for row in (*found["neighbours"], *found["suspects"]["shown"]):
        assert row["image"] in html
    assert 'href="#features"' in html
    assert not re.search(r'src="(?!data:)', html)
    assert (workdir / "feature_map.png").is_file()


@pytest.fixture(scope="module")
def part(workdir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """What is found where some of the training images are looked at: `explanation.json` and the rows of the CSV file."""
    path = tmp_path_factory.mktemp("runs") / "part"
    shutil.copytree(workdir, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "make_classifier", lambda settings, count, **others: small_classifier())
        patch.setattr(datasets, "load_published", lambda settings, **others: DATASET)
        explain.main(["explain", f"--model={path}", "--train_images=200"])
    with (path / "suspect_labels.csv").open(newline="") as file:
        return json.loads((path / "explanation.json").read_text()), list(csv.DictReader(file))


def pixels_of(uri: str) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = tf.io.decode_png(base64.b64decode(uri.partition(",")[2]), channels=3).numpy()
    return pixels


def test_what_is_shown_is_what_is_told_of(part: tuple[dict[str, Any], list[dict[str, str]]]) -> None:
    """Places, labels and images are of the same image, also where not every image was looked at."""
    found, rows = part
    assert (found["train_images"], found["suspects"]["images"]) == (200, 200)
    assert len(rows) >= 3
    looked_at = choose(len(DATASET.train.labels), 200, seed=0)  # rising; rows have places in all of the train set
    assert {int(row["index"]) for row in rows} <= set(looked_at.tolist())
    assert not {int(row["index"]) for row in rows} <= set(range(len(rows)))
    for row in rows:
        assert row["label"] == CLASS_NAMES[DATASET.train.labels[int(row["index"])]]
    for shown in found["suspects"]["shown"]:
        np.testing.assert_array_equal(pixels_of(shown["image"]), DATASET.train.images[shown["index"]])
    for error in found["neighbours"]:
        image = pixels_of(error["image"])
        place = np.flatnonzero((DATASET.test.images[:] == image).all(axis=(1, 2, 3)))[0]
        assert error["label"] == CLASS_NAMES[DATASET.test.labels[place]] != error["predicted"]
        for near in error["nearest"]:
            place = np.flatnonzero((SPLITS.train.images[:] == pixels_of(near["image"])).all(axis=(1, 2, 3)))[0]
            assert near["label"] == CLASS_NAMES[SPLITS.train.labels[place]]


def test_tensorboard_finds_the_projector(workdir: Path) -> None:
    """Its own plugin lists the runs that have one."""
    logdir = str(workdir / "tensorboard")
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(logdir).Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, logdir)
    context = base_plugin.TBContext(logdir=logdir, data_provider=provider, multiplexer=multiplexer)
    plugin = projector_plugin.ProjectorPlugin(context)
    plugin._update_configs()
    assert [(run, next(iter(config.embeddings)).tensor_path) for run, config in plugin._configs.items()] == [
        ("train", "features.tsv")
    ]


def test_too_few_images_are_refused(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_published", lambda settings, **others: DATASET)
    with pytest.raises(UserError, match=r"^--train_images has to leave 5 images of each class .*\. Received: 20$"):
        explain.main(["explain", f"--model={workdir}", "--train_images=20"])


def test_a_class_that_is_too_small_has_no_suspects(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other findings need no such number."""
    places = np.concatenate([np.flatnonzero(DATASET.train.labels != 3), np.flatnonzero(DATASET.train.labels == 3)[:4]])
    few = DATASET._replace(train=DATASET.train.at(places))
    run = read_finished_run(workdir)
    assert explain.explain_labels(run, few, 0) is None
    assert capsys.readouterr().out == ("no suspect labels: they need 5 training images of each class, and cat has 4\n")


def test_a_run_that_began_with_nothing_has_no_suspects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finish_small_run(tmp_path / "run")
    explain.main(["explain", f"--model={path}", "--train_images=50"])
    assert "no suspect labels" in capsys.readouterr().out
    content = json.loads((path / "explanation.json").read_text())
    assert content["suspects"] is None
    assert content["train_images"] == 50
    assert not (path / "suspect_labels.csv").exists()
    (path / "model.keras").unlink()
    with pytest.raises(UserError, match=r"no model\.keras any more\. Received: "):
        explain.main(["explain", f"--model={path}"])


@pytest.mark.parametrize("command", [evaluate, explain, export], ids=["evaluate", "explain", "export"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "exports/exports.json",
            {"onnx": {"accuracy": 0.9, "images_per_second": 5.0}},
        ),  # of before there were intervals
        ("further_evaluation.json", {"rows": [{"accuracy": 0.9, "loss": 0.1}], "means": {}}),
        ("further_evaluation.json", {"rows": [], "means": {}, "unknown": {"folder:a": {"auroc": 0.5}}}),
        ("further_evaluation.json", {"rows": [], "means": {"cifar10_corrupted": {"n": 2, "accuracy": 0.5}}}),
        ("explanation.json", []),
        ("explanation.json", "{"),
    ],
)
def test_what_another_version_left_is_named_before_anything_is_done(
    name: str, content: Any, command: ModuleType, workdir: Path, tmp_path: Path
) -> None:
    for each in ("result.json", "predictions.npz", "metrics.jsonl", "model.keras", "saved_model"):
        (tmp_path / each).symlink_to(workdir / each)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    more = ["--test_time_augmentation=flip"] if command is evaluate else []
    with pytest.raises(UserError, match=rf"^{Path(name).name}.*Received: .*{name}$"):
        command.main([command.__name__, f"--model={tmp_path}", *more])
    assert not (tmp_path / "report.html").exists()


def test_evaluate_tells_unknown_images_from_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of one colour, against scikit-learn on what the model serves. Other results of the workdir stay."""
    path = finish_small_run(tmp_path / "run")
    folder = tmp_path / "unknown"
    (folder / "more").mkdir(parents=True)
    colours = np.random.default_rng(0).integers(0, 256, (50, 1, 1, 3), np.uint8).repeat(40, axis=1).repeat(40, axis=2)
    for number, pixels in enumerate(colours):
        Image.fromarray(pixels).save(folder / "more" / f"{number:02}.png")
    (folder / "broken.jpg").write_text("text")
    evaluate.main(["evaluate", f"--model={path}", "--test_time_augmentation=flip"])
    evaluate.main(["evaluate", f"--model={path}", f"--unknown=folder:{folder}"])
    content = json.loads((path / "further_evaluation.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["none", "flip"]
    found = content["unknown"][f"folder:{folder}"]
    assert (found["known"], found["unknown"], found["unreadable"]) == (len(DATASET.test.labels), 50, 1)
    model = load_saved_model(path)
    known, unknown = (
        model.serve(tf.constant(images))["probabilities"].numpy().max(axis=1)
        for images in (DATASET.test.images[:], colours)
    )
    labels, scores = np.repeat([1, 0], [len(known), len(unknown)]), np.concatenate([known, unknown])
    assert found["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=2e-3)
    low, high = found["intervals"]["auroc"]
    assert low <= found["auroc"] <= high
    assert "known against unknown" in capsys.readouterr().out
    assert f"folder:{folder}" in (path / "report.html").read_text()
    (folder / "more").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"^the file is not a picture that can be read: .*broken\.jpg$"):
        evaluate.main(["evaluate", f"--model={path}", f"--unknown=folder:{folder}"])


@pytest.mark.slow
def test_evaluate_goes_on_beside_the_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two calls: what the first one found stays."""
    path = finish_small_run(tmp_path / "run")
    evaluate.main(["evaluate", f"--model={path}"])
    assert not (path / "report.html").exists()  # nothing was asked for
    evaluate.main(["evaluate", f"--model={path}", "--test_time_augmentation=flip"])
    evaluate.main(["evaluate", f"--model={path}", "--test_sets=corruptions"])
    content = json.loads((path / "further_evaluation.json").read_text())
    names = [row["name"] for row in content["rows"]]
    assert names[:4] == ["none", "flip", "none", "gaussian_noise 1"]
    assert len(names) == 43
    model = keras.models.load_model(path / "model.keras")
    images, labels = DATASET.test.images[:], DATASET.test.labels
    logits = model.predict(images, verbose=0) + model.predict(np.ascontiguousarray(images[:, :, ::-1]), verbose=0)
    assert content["rows"][1]["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    result = json.loads((path / "result.json").read_text())
    for plain in (content["rows"][0], content["rows"][2]):
        assert plain["accuracy"] == result["test"]["accuracy"]
        assert plain["loss"] == pytest.approx(result["calibration"]["test"]["loss"], rel=1e-5)
    printed, html = capsys.readouterr().out, (path / "report.html").read_text()
    assert "corruption: pixelate 5" in printed
    assert "The corruptions are as strong as those of CIFAR-10-C." in printed
    assert f"{100 * content['means']['corruptions']['accuracy']:.2f}" in html
    assert (path / "corruptions.png").is_file()
    assert "under noise, blur" in (path / "model_card.md").read_text()
