import dataclasses
import errno
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from sklearn import metrics as sklearn_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_keras import config as config_lib
from cifar_keras import evaluate, predict, run
from cifar_keras.data import synthetic
from cifar_keras.data.splits import make_splits
from cifar_keras.errors import UserError
from cifar_keras.evaluation.calibration import expected_calibration_error, softmax
from cifar_keras.exporting import classify, saved_model
from cifar_keras.files.workdir import claimed
from cifar_keras.training import setup
from cifar_keras.training.checkpoints import Checkpoint, Checkpoints
from cifar_keras.training.phases import plan_phases
from cifar_keras.training.stopwatch import Stopwatch
from cifar_keras.training.tracking import RunLog

ROOT = Path(__file__).parent.parent
# The command; `cifar_keras.train` is the function.
TRAIN = importlib.import_module("cifar_keras.train")

# The smallest network of the table, on the synthetic set.
FLAGS = {
    "data_source": "synthetic",
    "backbone": "resnet20",
    "weights": "none",
    "image_size": 32,
    "head_epochs": 1,
    "head_steps_per_epoch": 2,
    "finetune_epochs": 2,
    "finetune_steps_per_epoch": 2,
    "finetune_unfreeze_from": "conv4",
}


def command_line(workdir: Path, flags: dict[str, Any]) -> Sequence[str]:
    return ["train", f"--workdir={workdir}", *(f"--{name}={value}" for name, value in flags.items())]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "small"
    TRAIN.main(command_line(path, FLAGS))
    return path


@pytest.fixture(scope="module")
def result(workdir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workdir / "result.json").read_text())
    return content


def test_the_workdir_holds_everything_of_the_run(workdir: Path) -> None:
    assert {path.name for path in workdir.iterdir()} == {
        "attribution.png",
        "augmented_images.png",
        "config.json",
        "confusion_matrix.png",
        "coverage.png",
        "dataset.json",
        "environment.json",
        "learning_curves.png",
        "metrics.jsonl",
        "model.keras",
        "model_card.md",
        "predictions.npz",
        "predictions.png",
        "reliability.png",
        "report.html",
        "result.json",
        "saved_model",
        "tensorboard",
    }


def test_the_result_has_the_agreed_shape(result: dict[str, Any]) -> None:
    assert set(result) == {
        *("test", "validation", "minutes", "images_per_second", "config", "environment", "seed", "commit"),
        *("calibration", "compute_dtype", "phases", "rollbacks", "sparsity", "states", "training_pflop"),
    }
    assert set(result["minutes"]) == {"prepare", "head", "finetune", "evaluate", "total"}
    assert set(result["images_per_second"]) == {"head", "finetune", "evaluate"}
    assert result["minutes"]["total"] >= sum(result["minutes"][name] for name in ("head", "finetune", "evaluate"))
    assert (result["test"]["n"], result["validation"]["n"]) == (100, 40)
    rates = [result["test"][name] for name in ("accuracy", "top5", "macro_precision", "macro_recall", "macro_f1")]
    assert all(0 <= rate <= 1 for rate in rates)


def test_the_result_says_how_each_phase_was_computed(result: dict[str, Any]) -> None:
    assert result["compute_dtype"] in ("float32", "bfloat16")
    assert list(result["phases"]) == ["head", "finetune"]
    learning = {"head": 0, "finetune": 7}  # convolutions in conv4 of a ResNet-20
    for name, summary in result["phases"].items():
        assert set(summary) == {
            *("images_per_second", "pipeline_images_per_second", "cached_features", "kernel_gradients_by_matmul")
        }
        assert summary["images_per_second"] == result["images_per_second"][name] > 0
        assert summary["pipeline_images_per_second"] > 0
        assert summary["cached_features"] is False  # too few images are seen for it to pay
        assert 0 <= summary["kernel_gradients_by_matmul"] <= learning[name]


def test_the_config_in_the_result_is_the_config_that_ran(workdir: Path, result: dict[str, Any]) -> None:
    config = config_lib.from_values(result["config"])
    assert config == config_lib.from_values({**FLAGS, "workdir": str(workdir)})
    assert json.loads((workdir / "config.json").read_text()) == result["config"]


def test_the_metrics_are_those_of_the_exported_model(workdir: Path, result: dict[str, Any]) -> None:
    """NumPy and plain Keras on `model.keras`, without any of our evaluation."""
    splits = make_splits(synthetic.make_dataset(0), 0.1, seed=0)
    model = keras.models.load_model(workdir / "model.keras")
    for name, (images, labels) in (("test", splits.test), ("validation", splits.validation)):
        logits = model.predict(images, verbose=0).astype(np.float64)
        assert result[name]["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -log_probabilities[np.arange(len(labels)), labels].mean()
        assert result[name]["loss"] == pytest.approx(loss, rel=1e-4)


def test_the_result_says_what_calibration_error_chance_shows(workdir: Path, result: dict[str, Any]) -> None:
    """Of labels that are drawn from the served probabilities."""
    probabilities = softmax(np.load(workdir / "predictions.npz")["test_logits"], result["calibration"]["temperature"])
    generator = np.random.default_rng(5)
    drawn = [
        expected_calibration_error(probabilities, np.array([generator.choice(10, p=row) for row in probabilities]))
        for _ in range(100)
    ]
    assert result["calibration"]["test"]["calibration_error_by_chance"] == pytest.approx(np.mean(drawn), rel=0.15)


def test_the_predictions_that_are_kept_are_those_of_the_figures(workdir: Path, result: dict[str, Any]) -> None:
    splits = make_splits(synthetic.make_dataset(0), 0.1, seed=0)
    kept = np.load(workdir / "predictions.npz")
    for name, split in (("test", splits.test), ("validation", splits.validation)):
        np.testing.assert_array_equal(kept[f"{name}_labels"], split.labels)
        assert (kept[f"{name}_logits"].argmax(axis=1) == split.labels).mean() == result[name]["accuracy"]


def test_the_probabilities_that_are_served_are_calibrated_on_validation(workdir: Path, result: dict[str, Any]) -> None:
    """The metrics after temperature scaling, from what the SavedModel gives and scikit-learn."""
    kept, calibration = np.load(workdir / "predictions.npz"), result["calibration"]
    model = saved_model.load_saved_model(workdir)
    served = model.serve(tf.constant(make_splits(synthetic.make_dataset(0), 0.1, seed=0).test.images))
    probabilities = served["probabilities"].numpy().astype(np.float64)
    wanted = tf.nn.softmax(kept["test_logits"] / calibration["temperature"])
    np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    labels = kept["test_labels"]
    loss = sklearn_metrics.log_loss(labels, probabilities / probabilities.sum(axis=1, keepdims=True))
    assert calibration["test"]["loss"] == pytest.approx(loss, rel=1e-4)

    def validation_loss(temperature: float) -> float:
        return float(
            sklearn_metrics.log_loss(kept["validation_labels"], softmax(kept["validation_logits"], temperature))
        )

    best = validation_loss(calibration["temperature"])
    assert best <= result["validation"]["loss"] + 1e-9
    inner = [
        factor for factor in (0.9, 1.1) if 1e-3 < factor * calibration["temperature"] < 1e3
    ]  # random weights can ask for an end
    assert all(best <= validation_loss(factor * calibration["temperature"]) + 1e-9 for factor in inner)


def test_the_best_epoch_by_validation_is_the_one_that_is_exported(workdir: Path, result: dict[str, Any]) -> None:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if "validation_accuracy" in record]
    assert [record["epoch"] for record in epochs] == [0, 1, 2]
    assert [record["step"] for record in epochs] == [2, 4, 6]
    best = max(record["validation_accuracy"] for record in epochs)
    assert result["validation"]["accuracy"] == pytest.approx(best, abs=1e-6)


def test_tensorboard_has_curves_config_and_pictures(workdir: Path) -> None:
    events = EventAccumulator(str(workdir / "tensorboard" / "train")).Reload()
    tags = set(events.Tags()["tensors"])
    pictures = {
        "augmented_images",
        "confusion_matrix",
        "predictions",
        "learning_curves",
        "reliability",
        "attribution",
        "coverage",
    }
    assert {"loss", "accuracy", "learning_rate", "config"} | pictures <= tags
    assert b"finetune_unfreeze_from" in events.Tensors("config")[0].tensor_proto.string_val[0]
    encoded = events.Tensors("confusion_matrix")[0].tensor_proto.string_val[2]
    assert tf.io.decode_png(encoded).numpy().std() > 1


def test_evaluate_repeats_the_numbers(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["evaluate", f"--model={workdir}"])
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"the metrics agree with {workdir / 'result.json'}"


def test_one_image_may_have_another_prediction() -> None:
    """Of however many: fractions of whole images whose difference is more than 1e-4, or rounded to more."""
    reported: dict[str, dict[str, float]] = {
        name: {"accuracy": right / n, "n": n, "loss": 0.3, "brier": 0.2} for name, right, n in SPLITS_OF_A_RUN
    }
    for more, found in ((1, []), (-1, []), (2, ["test", "validation"]), (-2, ["test", "validation"])):
        measured = {name: reported[name] | {"accuracy": (right + more) / n} for name, right, n in SPLITS_OF_A_RUN}
        assert [text.split()[:2] for text in evaluate.differences(measured, reported)] == [
            [name, "accuracy"] for name in found
        ]
    for metric in ("loss", "brier"):
        for off, count in ((0.9e-4, 0), (1.1e-4, 1)):
            other = reported | {"test": reported["test"] | {metric: reported["test"][metric] + off}}
            assert len(evaluate.differences(other, reported)) == count


SPLITS_OF_A_RUN = (("test", 8907, 10_000), ("validation", 4471, 5_000))


def test_evaluate_tells_a_temperature_that_is_not_the_reported_one(workdir: Path, tmp_path: Path) -> None:
    """The logits are what they were."""
    for name in ("result.json", "dataset.json", "predictions.npz", "metrics.jsonl"):
        (tmp_path / name).symlink_to(workdir / name)
    model = keras.models.load_model(workdir / "model.keras")
    saved_model.export_saved_model(
        model, synthetic.make_dataset(0).class_names, tmp_path / "saved_model", temperature=20.0
    )
    with pytest.raises(SystemExit, match=r"Received: test at another temperature; validation at another temperature$"):
        evaluate.main(["evaluate", f"--model={tmp_path}"])


@pytest.mark.parametrize(("metric", "more"), [("loss", 0.001), ("accuracy", 0.02)])
def test_evaluate_tells_a_model_that_is_not_the_reported_one(
    metric: str, more: float, workdir: Path, tmp_path: Path, result: dict[str, Any]
) -> None:
    changed = json.loads(json.dumps(result))
    changed["test"][metric] += more
    for name in ("saved_model", "predictions.npz", "metrics.jsonl"):
        (tmp_path / name).symlink_to(workdir / name)
    (tmp_path / "result.json").write_text(json.dumps(changed))
    with pytest.raises(
        SystemExit, match=rf"^error: .* differ from those in .*result\.json\. Received: test {metric} [^;]*$"
    ):
        evaluate.main(["evaluate", f"--model={tmp_path}"])


def test_predict_prints_the_classes_of_files(
    workdir: Path, tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = synthetic.make_dataset(0)
    paths = []
    for number, image in enumerate(dataset.test.images[:40]):  # more than one batch of files
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(tf.io.encode_png(image).numpy())
    predict.main(["predict", f"--model={workdir}", "--top=2", *map(str, paths)])
    lines = capsys.readouterr().out.splitlines()
    logits = keras.models.load_model(workdir / "model.keras").predict(dataset.test.images[:40])
    assert len(lines) == 40
    for path, line, row in zip(paths, lines, softmax(logits, result["calibration"]["temperature"]), strict=True):
        name, first, probability, *_ = line.split()
        assert (name, first) == (str(path), dataset.class_names[row.argmax()])
        assert float(probability) == pytest.approx(row.max(), abs=1e-3)


def test_predict_draws_what_the_classes_of_files_come_from(workdir: Path, tmp_path: Path) -> None:
    """Grey photographs of two shapes: all that is coloured is what the maps say."""
    dataset = synthetic.make_dataset(0)
    files = [tmp_path / "a_$name$.png", tmp_path / f"{'m' * 60}.jpg"]
    for file, image, size in zip(files, dataset.test.images[:], ((64, 48), (32, 32)), strict=False):
        grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
        pixels = tf.cast(tf.image.resize(grey, size), tf.uint8)
        encode = tf.io.encode_png if file.suffix == ".png" else tf.io.encode_jpeg
        file.write_bytes(encode(pixels).numpy())
    predict.main(["predict", f"--model={workdir}", f"--attribution={tmp_path / 'maps.png'}", *map(str, files)])
    picture = tf.io.decode_png((tmp_path / "maps.png").read_bytes(), channels=3).numpy().astype(int)
    assert (picture[[0, -1]] == 255).all()  # nothing is cut
    assert (picture[:, [0, -1]] == 255).all()
    assert (np.ptp(picture, axis=-1) > 80).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation: int) -> None:
    """As Pillow turns them."""
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    exif, file = stored.getexif(), io.BytesIO()
    exif[0x0112] = orientation
    stored.save(file, "PNG", exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    np.testing.assert_array_equal(classify.decode(Path("a.png"), file.getvalue()), wanted)
    jpeg = io.BytesIO()
    stored.save(jpeg, "JPEG", exif=exif)
    assert classify.decode(Path("a.jpg"), jpeg.getvalue()).shape == wanted.shape


def test_predict_turns_photographs(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture that was stored upside down, and says so, has the probabilities of the one that was not."""
    pixels = synthetic.make_dataset(0).test.images[0]
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "held.png")
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    predict.main(["predict", f"--model={workdir}", str(tmp_path / "held.png"), str(tmp_path / "turned.png")])
    held, turned = (line.split("  ")[1:] for line in capsys.readouterr().out.splitlines())
    assert held == turned


def test_predict_says_why_it_cannot_draw(workdir: Path, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(tf.io.encode_png(synthetic.make_dataset(0).test.images[0]).numpy())
    with pytest.raises(UserError, match=r"^the run has no model\.keras any more\. Received: "):
        predict.main(["predict", f"--model={tmp_path}", f"--attribution={tmp_path / 'maps.png'}", str(file)])
    with pytest.raises(UserError, match=r"^--attribution cannot be written: .*\. Received: .*maps\.png$"):
        predict.main(["predict", f"--model={workdir}", f"--attribution={tmp_path / 'no' / 'maps.png'}", str(file)])


def test_a_tampered_export_fails_the_run(workdir: Path) -> None:
    """The SavedModel on disk is another one than the classifier in memory."""
    classifier = keras.models.load_model(workdir / "model.keras")
    kernel = classifier.get_layer("head").kernel
    kernel.assign(np.asarray(kernel) + np.random.default_rng(0).normal(size=kernel.shape))
    dataset = make_splits(synthetic.make_dataset(0), 0.1, seed=0)
    logits, nothing = classifier.predict(dataset.validation.images, verbose=0), dict[str, Any]()
    config, log = config_lib.from_values(FLAGS), RunLog(workdir.parent)
    trained = run.Trained(config, workdir, dataset, classifier, logits, nothing, 1.0, nothing, log, Stopwatch())
    with pytest.raises(RuntimeError, match="is not the model that was trained"):
        run.check_is_trained(saved_model.load_saved_model(workdir), trained)


class Sealed:
    """A split that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test split was looked at: {name}")

    def __iter__(self) -> Any:
        raise AssertionError("the test split was looked at")

    __len__ = __getitem__ = __iter__


class Epochs(keras.callbacks.Callback):
    """What a callback of somebody's own sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        assert "val_accuracy" in logs
        self.seen.append(epoch)


def test_training_does_not_look_at_the_test_split(
    tmp_path: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at validation; what finishes it with the real split gives the whole run's figures."""
    dataset, epochs = make_splits(synthetic.make_dataset(0), 0.1, seed=0), Epochs()
    sealed: Any = Sealed()
    monkeypatch.setattr(setup, "load_dataset", lambda *_, **__: dataset._replace(test=sealed))
    config = config_lib.from_values({**FLAGS, "workdir": str(tmp_path / "run")})
    trained = run.train(config, callbacks=[epochs])
    assert epochs.seen == [0, 1, 2]
    assert trained.validation["accuracy"] == pytest.approx(result["validation"]["accuracy"], abs=0.1)
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(AssertionError, match=r"^the test split was looked at"):
        run.finish(trained)
    finished = run.finish(trained._replace(dataset=trained.dataset._replace(test=dataset.test)))
    assert finished.keys() == result.keys()
    assert finished["validation"] == trained.validation
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["n"] == 100
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_second_run_into_the_same_workdir_is_refused_and_loses_nothing(workdir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(UserError, match=r"--workdir has to be new or empty.* Received: "):
        TRAIN.main(command_line(workdir, FLAGS))
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_run_that_is_whole_is_left_as_it_is(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    TRAIN.main(command_line(workdir, FLAGS | {"resume": "auto", "keep_checkpoints": 5}))
    assert "nothing is left to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match=r"others are: --image_size=33 \(was 32\), --seed=1 \(was 0\)\. Received: "):
        TRAIN.main(command_line(workdir, FLAGS | {"resume": "yes", "seed": 1, "image_size": 33}))


def of_an_older_version(folder: Path) -> None:
    """Take the settings away that the version before did not have."""
    config = json.loads((folder / "config.json").read_text())
    for flag in ("dataset", "synthetic_classes", "finetune_image_sizes", "finetune_stage_epochs"):
        del config[flag]
    (folder / "config.json").write_text(json.dumps(config))


def test_a_whole_run_of_an_older_version_is_left_as_it_is(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(workdir, tmp_path / "run")
    of_an_older_version(tmp_path / "run")
    TRAIN.main(command_line(tmp_path / "run", FLAGS | {"resume": "yes"}))
    assert "nothing is left to do" in capsys.readouterr().out


def test_a_checkpoint_of_an_older_version_is_refused_by_name(workdir: Path, tmp_path: Path) -> None:
    """It has no `progress`, and is whole."""
    shutil.copytree(workdir, tmp_path / "run")
    of_an_older_version(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    Checkpoints(tmp_path / "run" / "checkpoints", 2).save(Checkpoint({"position": {"phase": 0}}, {}))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"^--resume: another version of the program .* Received: format 1$"):
        TRAIN.main(command_line(tmp_path / "run", FLAGS | {"resume": "yes"}))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_workdir_in_use_is_refused(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        with pytest.raises(UserError, match=r"--workdir is in use by another process\. Received: "):
            TRAIN.main(command_line(tmp_path / "run", FLAGS))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ENOENT])
def test_a_workdir_that_cannot_be_written_any_more_is_said(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: Any, path: Path, *others: Any) -> Any:
        if code == errno.ENOENT:
            shutil.rmtree(path)
        raise OSError(code, os.strerror(code), str(path / "model.keras"))

    monkeypatch.setattr(run, "_train", fail)
    reason = "it is gone" if code == errno.ENOENT else os.strerror(code)
    message = rf"^--workdir cannot be written any more: {reason}; .*--resume .*\. Received: .*model\.keras$"
    with pytest.raises(UserError, match=message):
        TRAIN.main(command_line(tmp_path / "run", FLAGS))
    assert not (tmp_path / "run").exists()


def test_a_mistake_of_the_program_is_not_laid_to_the_workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Any, path: Path, *others: Any) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No such file", "elsewhere")

    monkeypatch.setattr(run, "_train", fail)
    with pytest.raises(FileNotFoundError):
        TRAIN.main(command_line(tmp_path / "run", FLAGS))


@pytest.mark.slow
def test_a_whole_run_that_is_terminated_ends_like_one_that_is_not(tmp_path: Path) -> None:
    """A process that gets SIGTERM after its first step, and one that goes on."""
    flags = FLAGS | {"deterministic": True, "head_steps_per_epoch": 5, "finetune_steps_per_epoch": 5}
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    command = [sys.executable, "-m", "cifar_keras.train"]
    subprocess.run([*command, *command_line(whole, flags)[1:]], check=True, cwd=ROOT)
    process = subprocess.Popen([*command, *command_line(ended, flags)[1:]], cwd=ROOT)
    while not (ended / "checkpoints").exists():
        time.sleep(0.1)
        assert process.poll() is None
    time.sleep(3)
    process.terminate()
    assert process.wait() == 75
    subprocess.run([*command, *command_line(ended, flags | {"resume": "yes"})[1:]], check=True, cwd=ROOT)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, ended)]
    for key in ("test", "validation", "compute_dtype", "rollbacks"):
        assert results[0][key] == results[1][key]
    weights = [keras.models.load_model(folder / "model.keras").get_weights() for folder in (whole, ended)]
    assert all(np.array_equal(left, right) for left, right in zip(*weights, strict=True))
    assert {path.name for path in ended.iterdir()} == {path.name for path in whole.iterdir()}


def test_phases_without_epochs_are_left_out() -> None:
    config = config_lib.from_values(FLAGS)
    only_finetune = dataclasses.replace(config, head=dataclasses.replace(config.head, epochs=0))
    assert [(phase.name, phase.first_epoch) for phase in plan_phases(only_finetune, 360)] == [("finetune", 0)]
    both = plan_phases(config, 360)
    assert [(phase.name, phase.first_epoch, phase.steps) for phase in both] == [("head", 0, 2), ("finetune", 1, 4)]


def test_more_steps_than_the_split_has_are_refused() -> None:
    config = config_lib.from_values(FLAGS | {"finetune_steps_per_epoch": 6})
    with pytest.raises(UserError, match=r"--finetune_steps_per_epoch.* Received: 6$"):
        plan_phases(config, 360)


@pytest.mark.slow
def test_a_student_learns_from_a_run(workdir: Path, tmp_path: Path) -> None:
    """From the teacher alone: the loss of its one epoch is the distance of its logits from the teacher's, image by image."""
    flags = FLAGS | {"teacher": str(workdir), "distillation_weight": 1.0, "distillation_temperature": 2.0}
    flags |= {"compute_dtype": "float32"}  # in bfloat16 the teacher's logits differ by some thousandths
    flags |= {"head_epochs": 0, "finetune_epochs": 1, "finetune_train_batch_norm": True, "finetune_sparsity": 0.5}
    student = tmp_path / "student"
    TRAIN.main(command_line(student, flags))
    last = json.loads((student / "metrics.jsonl").read_text().splitlines()[-1])
    images = make_splits(synthetic.make_dataset(0), 0.1, seed=0).validation.images
    teacher = keras.models.load_model(workdir / "model.keras")
    wanted, said = (
        np.asarray(tf.nn.log_softmax(logits.astype(np.float64) / 2))
        for logits in (teacher.predict(images, verbose=0), np.load(student / "predictions.npz")["validation_logits"])
    )
    distance = (np.exp(wanted) * (wanted - said)).sum(axis=1).mean()
    assert last["validation_loss"] == pytest.approx(4 * distance, rel=1e-3)
    assert not (student / "checkpoints").exists()
    result = json.loads((student / "result.json").read_text())
    assert result["config"]["teacher"] == str(workdir)
    backbone = keras.models.load_model(student / "model.keras").get_layer("backbone")
    kernels = [np.asarray(weight) for weight in backbone.weights if len(weight.shape) == 4]
    zeros = sum((kernel == 0).sum() for kernel in kernels) / sum(kernel.size for kernel in kernels)
    assert result["sparsity"] == pytest.approx(zeros)
    assert 0.3 < zeros < 0.5  # half of what learned: conv4, which has three quarters of the weights
    assert f"the model of `{workdir}`" in (student / "model_card.md").read_text()


@pytest.mark.real_data
def test_a_run_with_nothing_but_default_flags(tmp_path: Path) -> None:
    """Only what says "synthetic" and where to write is set; the weights are ImageNet's."""
    TRAIN.main(["train", "--data_source=synthetic", f"--workdir={tmp_path / 'run'}"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.5  # chance is 0.1


@pytest.mark.real_data
def test_a_short_run_on_real_images_with_real_weights(tmp_path: Path) -> None:
    flags = {
        "backbone": "resnet50",
        "image_size": 32,
        "head_steps_per_epoch": 40,
        "finetune_epochs": 1,
        "finetune_steps_per_epoch": 20,
    }
    TRAIN.main(command_line(tmp_path / "run", flags))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["test"]["n"], result["validation"]["n"]) == (10_000, 5_000)
    # 2,560 images for the head and 1,280 for the backbone. A logistic head on all of them gives 0.67 at 32 px.
    assert result["test"]["accuracy"] > 0.5
    assert saved_model.load_saved_model(tmp_path / "run").signatures
