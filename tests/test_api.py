"""The names of the package in Python: lazy, typed, twice in one process, and errors instead of exits."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cifar_keras
from cifar_keras.errors import UserError

SMALL: dict[str, Any] = {
    "dataset": "synthetic",
    "backbone": "resnet20",
    "weights": "none",
    "image_size": 16,
    "head_epochs": 0,
    "finetune_epochs": 1,
    "finetune_steps_per_epoch": 2,
    "deterministic": False,
    "compute_dtype": "float32",
    "kernel_gradient": "convolution",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def run(folder: Path) -> cifar_keras.Run:
    return cifar_keras.train(workdir=folder / "first", **SMALL)


def test_a_run_has_the_content_of_its_workdir(run: cifar_keras.Run, folder: Path) -> None:
    result = json.loads((folder / "first" / "result.json").read_text())
    assert run.result == result
    assert run.metrics == result["test"]
    assert run.class_names == tuple(result["test"]["per_class"])
    assert run.config.model.backbone == "resnet20"
    assert run.report.read_text().startswith("<!DOCTYPE html>")
    assert repr(run) == f"<Run {folder / 'first'}: resnet20, accuracy {run.metrics['accuracy']:.2%} of 100>"


def test_one_file_and_none_are_pictures_too(run: cifar_keras.Run, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    pixels = np.full((1, 40, 40, 3), 77, np.uint8)
    Image.fromarray(pixels[0]).save(file)
    (one,) = run.predict(str(file))
    assert (one.name, [one], [one._replace(name="[0]")]) == (str(file), run.predict([file]), run.predict(pixels))
    assert run.predict([]) == run.predict(pixels[:0]) == []
    wrongs: tuple[tuple[Any, str], ...] = (
        (pixels[0], r"uint8 \[40, 40, 3\]"),
        (pixels / 255, r"float64 \[1, 40, 40, 3\]"),
    )
    for wrong, received in wrongs:
        with pytest.raises(UserError, match=rf"^pictures have to be uint8 .*\. Received: {received}$"):
            run.predict(wrong)


@pytest.mark.slow
def test_a_second_run_in_the_same_process_is_the_same_run(run: cifar_keras.Run, folder: Path) -> None:
    again = cifar_keras.train(workdir=str(folder / "second"), **SMALL)
    first, second = (np.load(each.path / "predictions.npz") for each in (run, again))
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    assert cifar_keras.load(folder / "second").result == again.result


@pytest.mark.slow
def test_a_run_without_a_workdir_gets_a_new_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "runs" / "run_1").mkdir(parents=True)
    (folder / "small.flags").write_text("".join(f"--{name}={value}\n" for name, value in SMALL.items()))
    run = cifar_keras.train(folder / "small.flags", seed=3)
    assert (run.path, run.config.seed, run.config.model.backbone) == (Path("runs/run_2"), 3, "resnet20")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "red"}, r"^a config has no setting of this name\. Received: colour$"),
        ({"head_epochs": "3"}, r"^--head_epochs has to be of type int\. Received: '3'$"),
        ({"dataset": "folder:nowhere"}, r"^--dataset.*Received: (--dataset=)?folder:nowhere$"),
        ({"recipe": "nowhere.flags"}, r"nowhere\.flags"),
    ],
)
def test_what_cannot_be_trained_is_an_error_of_one_type(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        cifar_keras.train(**SMALL | settings)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(cifar_keras.UserError, match=r"Received: "):
        cifar_keras.load(tmp_path)


def test_the_package_knows_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fly'"):
        _ = cifar_keras.fly
    assert all(getattr(cifar_keras, name) for name in cifar_keras.__all__)


def test_the_names_do_not_import_tensorflow_and_survive_the_command_of_the_same_name() -> None:
    program = (
        "import sys, cifar_keras\n"
        "cifar_keras.load, cifar_keras.train, cifar_keras.Run, cifar_keras.UserError\n"
        "import cifar_keras.train\n"
        "try:\n    cifar_keras.train(colour='red')\n"
        "except cifar_keras.UserError as error:\n    print(error)\n"
        "print('tensorflow' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "a config has no setting of this name. Received: colour\nFalse False\n"
    assert callable(importlib.import_module("cifar_keras.train"))
