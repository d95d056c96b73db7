"""Exports are made of a small run and run by their own runtimes, in processes of their own."""

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray
from small_runs import TEMPERATURE, finish_small_run

from cifar_keras import evaluate, export
from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.splits import make_splits
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.errors import UserError
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.exporting import conversion, saved_model
from cifar_keras.exporting.formats import FORMATS, Bound
from experiments import smaller_models, tables

IMAGES = make_dataset(0).test.images[:]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 100 test images one is two of the half points that int8 may lose, so that it may lose three of them here."""
    path = finish_small_run(tmp_path_factory.mktemp("runs") / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "litert_int8", FORMATS["litert_int8"]._replace(bound=Bound(0.2, 0.9, 0.03)))
        export.main(["export", f"--model={path}"])
    return path


@pytest.fixture(scope="module")
def exports(workdir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workdir / "exports" / "exports.json").read_text())
    return content


@pytest.fixture(scope="module")
def logits(workdir: Path) -> NDArray[np.float32]:
    kept: NDArray[np.float32] = np.load(workdir / "predictions.npz")["test_logits"]
    return kept


def test_all_formats_are_kept_and_proven(workdir: Path, exports: dict[str, Any]) -> None:
    assert list(exports) == list(FORMATS)
    assert {file.name for file in (workdir / "exports").iterdir()} == {
        *("exports.json", "model.onnx", "model.tflite", "model_int8.tflite")
    }
    for name, found in exports.items():
        assert (workdir / found["path"]).exists(), name
        assert found["within_bounds"]
        assert found["images_per_second"] > 0
        if name != "litert_int8":
            assert found["logit_difference"] < 1e-4
            assert found["agreement"] == 1.0
        assert found.get("calibration_images") == (200 if name == "litert_int8" else None)
    assert exports["onnx"]["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert {name: found["batch_size"] for name, found in exports.items()} == {
        **{"keras": 64, "saved_model": 64, "onnx": 64},
        **{"litert": 1, "litert_int8": 1},
    }
    # Two convolutions and the head, with their biases, and the input transform.
    weights = (3 * 9 + 1) * 8 + (8 * 9 + 1) * 16 + (16 + 1) * 10 + (3 + 1) * 3
    assert exports["onnx"]["share_of_float32"] == pytest.approx(exports["onnx"]["bytes"] / (4 * weights))
    assert exports["litert"]["bytes"] == (workdir / "exports" / "model.tflite").stat().st_size
    assert not [path for path in workdir.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_tensorflows_own_program_runs_the_saved_model(
    workdir: Path, tmp_path: Path, logits: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run", "--outdir", str(tmp_path)]
    command += ["--dir", str(workdir / "saved_model"), "--tag_set", "serve", "--signature_def", "serve"]
    command += ["--inputs", f"images={tmp_path / 'images.npy'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, rtol=1e-4, atol=1e-4)


def test_onnx_takes_any_size_and_names_its_classes(workdir: Path, logits: NDArray[np.float32]) -> None:
    file = workdir / "exports" / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found, probabilities = session.run(["logits", "probabilities"], {"images": IMAGES})
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probabilities, softmax(logits, TEMPERATURE), atol=1e-5)
    wide = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), np.uint8)
    model = saved_model.load_saved_model(workdir)
    served = model.serve(wide)["logits"]
    np.testing.assert_allclose(session.run(["logits"], {"images": wide})[0], served, rtol=1e-4, atol=1e-4)
    metadata = {each.key: each.value for each in onnx.load(file).metadata_props}
    assert metadata["class_names"].split("\n") == list(CLASS_NAMES)


def test_int8_computes_with_integers(workdir: Path, logits: NDArray[np.float32]) -> None:
    """All that a convolution leads to; what comes out is near what the model says, and not the same."""
    interpreter = Interpreter(
        str(workdir / "exports" / "model_int8.tflite"),
        # A delegate would stand for the operations that it computes.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    convolutions = [operation for operation in details if operation["op_name"] == "CONV_2D"]
    types = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    assert len(convolutions) >= 2
    for operation in convolutions:
        activation, kernel, bias = operation["inputs"]
        assert (types[activation], types[kernel], types[bias]) == (np.int8, np.int8, np.int32)
    # Behind them floating point is only what is given out.
    first = details.index(convolutions[0])
    floating = {
        operation["op_name"]
        for operation in details[first:]
        for tensor in [*operation["inputs"], *operation["outputs"]]
        if tensor >= 0 and types[tensor] == np.float32
    }
    assert floating <= {"DEQUANTIZE"}
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (inputs["dtype"], inputs["shape"].tolist()) == (np.uint8, [1, 32, 32, 3])
    interpreter.set_tensor(inputs["index"], IMAGES[:1])
    interpreter.invoke()
    difference = np.abs(interpreter.get_tensor(outputs["index"]) - logits[:1]).max()
    assert 0 < difference < 0.2 * np.abs(logits).max()


def test_the_report_and_the_card_say_what_was_found(workdir: Path, exports: dict[str, Any]) -> None:
    html, card = ((workdir / name).read_text() for name in ("report.html", "model_card.md"))
    for name, found in exports.items():
        assert found["runtime"] in html
        assert f"| {name} | `{found['path']}` |" in card


def test_smaller_models_are_those_that_were_measured(
    workdir: Path, exports: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smaller_models, "RESULT", tmp_path / "smaller_models.json")
    monkeypatch.setattr(smaller_models, "TRIALS", 3)
    monkeypatch.setattr(smaller_models, "SECONDS", 0.01)
    with pytest.raises(UserError, match=r"Received: none$"):
        smaller_models.main(["smaller_models"])
    assert not (tmp_path / "smaller_models.json").exists()
    smaller_models.main(["smaller_models", str(workdir)])
    content = json.loads((tmp_path / "smaller_models.json").read_text())
    whole, int8 = content["rows"]
    assert [row["format"] for row in content["rows"]] == ["saved_model", "litert_int8"]
    assert [row["bytes"] for row in content["rows"]] == [
        exports[name]["bytes"] for name in ("saved_model", "litert_int8")
    ]
    assert int8["accuracy"] == exports["litert_int8"]["accuracy"]
    assert whole["accuracy"] == exports["saved_model"]["accuracy"]
    deflated = len(zlib.compress((workdir / "exports" / "model_int8.tflite").read_bytes()))
    assert int8["deflated_bytes"] == deflated < int8["bytes"]
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] for row in content["rows"])
    line = tables.smaller_models_table(content).splitlines()[-1]
    low, high = (100 * end for end in exports["litert_int8"]["intervals"]["accuracy"])
    assert line.startswith(
        f"| `small` | litert_int8 | resnet50 at 64 px | 0.0 % | {100 * int8['accuracy']:.2f} % ({low:.2f} to {high:.2f}) "
        f"| {int8['bytes'] / 1e6:.2f} | {deflated / 1e6:.2f} | {int8['images_per_second']:,.0f} ("
    )


@pytest.mark.slow
def test_an_export_that_is_another_model_is_not_kept(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The predictions that the run left are of other images."""
    path = tmp_path / "run"
    shutil.copytree(workdir, path)
    (path / "exports" / "model.onnx").unlink()
    before = json.loads((path / "exports" / "exports.json").read_text())
    with np.load(path / "predictions.npz") as kept:
        other = np.roll(kept["test_logits"], 1, axis=0)
        np.savez(path / "predictions.npz", test_logits=other, test_labels=kept["test_labels"])
    with pytest.raises(SystemExit, match=r"converted files are not kept\. Received: onnx, saved_model$"):
        export.main(["export", f"--model={path}", "--format=onnx,saved_model"])
    assert "NO" in capsys.readouterr().out
    known = json.loads((path / "exports" / "exports.json").read_text())
    assert known == {name: found for name, found in before.items() if name != "saved_model"}
    assert not (path / "exports" / "model.onnx").exists()
    assert (path / "saved_model").is_dir()


@pytest.mark.parametrize("command", [export, evaluate])
def test_a_model_of_other_classes_is_refused(command: ModuleType, workdir: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(workdir, path)
    classifier = keras.models.load_model(path / "model.keras", compile=False)
    saved_model.export_saved_model(classifier, CLASS_NAMES[:9], path / "saved_model")
    with pytest.raises(UserError, match=r"^--model tells other classes apart: airplane, .*, ship\. Received: .*run$"):
        command.main([command.__name__, f"--model={path}"])
    assert (path / "exports" / "exports.json").read_bytes() == (workdir / "exports" / "exports.json").read_bytes()


def test_an_export_that_fails_leaves_the_earlier_one(workdir: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(workdir, path)
    with np.load(path / "predictions.npz") as kept:
        np.savez(path / "predictions.npz", test_logits=-kept["test_logits"], test_labels=kept["test_labels"])
    before = (path / "exports" / "exports.json").read_bytes()
    with pytest.raises(SystemExit):
        export.main(["export", f"--model={path}", "--format=litert"])
    assert (path / "exports" / "exports.json").read_bytes() == before
    assert (path / "exports" / "model.tflite").exists()


@pytest.mark.slow
def test_what_was_kept_before_one_fails_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what an export learns ranges from are images of the train split, each once."""
    given: list[NDArray[np.uint8]] = []

    def fail(*arguments: Any, examples: NDArray[np.uint8], **settings: Any) -> None:
        given.append(examples)
        raise RuntimeError("no converter")

    path = finish_small_run(tmp_path / "run")
    monkeypatch.setattr(conversion, "convert", fail)
    for formats in ("onnx", "saved_model,onnx"):
        with pytest.raises(RuntimeError, match="no converter"):
            export.main(["export", f"--model={path}", f"--format={formats}"])
    train = {image.tobytes() for image in make_splits(make_dataset(0), 0.1, seed=0).train.images[:]}
    assert {image.tobytes() for image in given[0]} <= train
    assert len({image.tobytes() for image in given[0]}) == len(given[0]) == 200
    assert list(json.loads((path / "exports" / "exports.json").read_text())) == ["saved_model"]
    assert "tensorflow 2." in (path / "report.html").read_text()


def test_logits_are_compared_by_hand() -> None:
    wanted = np.array([[4.0, 0.0], [0.0, 2.0], [1.0, 0.5]], np.float32)
    logits = np.array([[3.0, 0.0], [0.0, 2.0], [0.5, 0.75]], np.float32)
    compared = export.compare(logits, wanted, np.array([0, 1, 0]), seed=0)
    assert compared["logit_difference"] == 0.25  # 1 of 4
    assert compared["agreement"] == pytest.approx(2 / 3)
    assert compared["accuracy"] == pytest.approx(2 / 3)
    assert compared["lost_accuracy"] == pytest.approx(1 / 3)
    assert export.is_within(compared, Bound(None, 0.6, 0.34))
    assert export.is_within(compared, Bound(0.25, 0.6, 0.34))
    assert not export.is_within(compared, Bound(0.24, 0.6, 0.34))
    assert not export.is_within(compared, Bound(0.25, 0.7, 0.34))
    assert not export.is_within(compared, Bound(0.25, 0.6, 0.33))


def test_half_a_point_is_half_a_point() -> None:
    """0.9 - 0.895 is more than 0.005 in floating point; 1,000 images of 10,000 are wrong, and of the export 1,050."""
    labels = np.zeros(10_000, np.int64)
    wanted, logits = (np.where(np.arange(10_000)[:, None] < wrong, [[0, 1]], [[1, 0]]) for wrong in (1000, 1050))
    compared = export.compare(logits.astype(np.float32), wanted.astype(np.float32), labels, seed=0)
    assert export.is_within(compared, FORMATS["litert_int8"].bound)
    # The interval of the export is that which a run with its predictions has.
    of_run = classification_metrics(logits.astype(np.float32), labels, ["a", "b"], seed=0)
    assert tuple(compared["intervals"]["accuracy"]) == tuple(of_run["intervals"]["accuracy"])
    assert not export.is_within(compared | {"lost_accuracy": 51 / 10_000}, FORMATS["litert_int8"].bound)


@pytest.mark.parametrize(
    ("broken", "received"),
    [
        (np.array([[0, 1], [np.nan, 1], [np.inf, np.nan]]), r"NaN or infinity in 2 of 3 rows"),
        (np.zeros((2, 2)), r"\(2, 2\)"),
        (np.zeros((3, 3)), r"\(3, 3\)"),
    ],
)
def test_what_is_no_answer_is_said(broken: NDArray[np.float64], received: str) -> None:
    with pytest.raises(RuntimeError, match=rf"Received: {received}$"):
        export.compare(broken.astype(np.float32), np.zeros((3, 2), np.float32), np.array([0, 1, 0]), seed=0)


def test_what_is_missing_is_named(workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no model\.keras any more\. Received: "):
        export.check_formats(["keras"], tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tf2onnx" else object())
    with pytest.raises(UserError, match=r"--format=onnx needs tf2onnx: .*\[export\].* Received: litert,onnx$"):
        export.main(["export", f"--model={workdir}", "--format=litert,onnx"])


def test_images_are_handed_over_as_a_numpy_file(tmp_path: Path) -> None:
    """In parts, of which the last is smaller."""
    images = np.random.default_rng(0).integers(0, 256, (2 * export.PART + 7, 4, 5, 3), np.uint8)
    export.save_images(images, tmp_path / "images.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy", allow_pickle=False), images, strict=True)


def test_images_that_shrink_are_smoothed_in_every_format_that_takes_them(workdir: Path, tmp_path: Path) -> None:
    """LiteRT takes images of the training images' size: of a network that shrinks those, it smooths them too."""
    photographs = np.random.default_rng(0).integers(0, 256, (3, 120, 70, 3), np.uint8)
    model = saved_model.load_saved_model(workdir)  # held: a function alone does not hold its variables
    served = model.serve(photographs)["logits"]
    classifier = keras.models.load_model(workdir / "model.keras", compile=False)
    session = onnxruntime.InferenceSession(str(workdir / "exports" / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["logits"], {"images": photographs})[0], served, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(classifier.predict(photographs, verbose=0), served, rtol=1e-4, atol=1e-3)
    assert classifier.get_layer("resize").height < 32  # smaller than what LiteRT takes here
    interpreter = Interpreter(str(workdir / "exports" / "model.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], IMAGES[:1])
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, classifier.predict(IMAGES[:1], verbose=0), rtol=1e-4, atol=1e-3)
