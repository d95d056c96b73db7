"""Whole runs on pictures of one's own: the commands, files that move and change, and bits that stay the same."""

import csv
import functools
import importlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import encoded, noise, write
from PIL import Image
from processes import run, variables
from test_pictures import SPLITS, check_named, rename_at_random, spoil

from cifar_keras import compare, evaluate, explain, export, predict
from cifar_keras.config import RunConfig, from_values
from cifar_keras.data.datasets import load_dataset, load_published
from cifar_keras.errors import UserError

# The command; `cifar_keras.train` is the function.
TRAIN = importlib.import_module("cifar_keras.train")
# The shortest run on pictures.
SHORT = (
    *("--backbone=resnet20", "--weights=none", "--image_size=32", "--head_epochs=0", "--finetune_epochs=1"),
    *("--global_batch_size=16", "--kernel_gradient=convolution", "--compute_dtype=float32"),
)
EXACT = (*SHORT, "--deterministic", "--finetune_epochs=2", "--finetune_train_batch_norm")


def tinted(label: int, seed: int, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """Pixels from which a network can tell the label."""
    return noise(seed, height, width) // 2 + np.array([60, 25 * label, 110 - 25 * label], np.uint8)


def write_tinted(folder: Path, classes: int, count: int, side: int = 32) -> Path:
    """So many pictures of each class, without splits."""
    for label in range(classes):
        for place in range(count):
            picture = encoded(tinted(label, label * count + place, side, side))
            write(folder, {f"class {label}/{place:03d}.png": picture})
    return folder


def bits_of(workdir: Path) -> dict[str, Any]:
    """What has to be the same: weights, what was logged but for its speed, logits and labels, and the metrics."""
    with zipfile.ZipFile(workdir / "model.keras") as archive:
        weights = archive.read("model.weights.h5")
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    with np.load(workdir / "predictions.npz") as arrays:
        predictions = {name: values.tobytes() for name, values in arrays.items()}
    result = json.loads((workdir / "result.json").read_text())
    return {
        "weights": weights,
        "records": [{key: value for key, value in each.items() if key != "images_per_second"} for each in records],
        "predictions": predictions,
        "result": {name: result[name] for name in ("test", "validation", "calibration")},
        "dataset": json.loads((workdir / "dataset.json").read_text()),
    }


# Commands on a finished run. Each test has its own copy of the pictures, and the runs read the same ones.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures in `set`, and with the finished run in `run`."""
    folder = tmp_path_factory.mktemp("finished")
    write_tinted(folder / "set", 3, 20)
    write(folder / "set", {"class 0/broken, or not.png": b"broken"})
    arguments = [f"--dataset=folder:{folder / 'set'}", f"--cache_dir={folder / 'cache'}", f"--workdir={folder / 'run'}"]
    TRAIN.main(["train", *arguments, *SHORT, "--bad_images=skip"])
    return folder


def test_a_run_on_pictures_leaves_what_any_run_does(finished: Path) -> None:
    result = json.loads((finished / "run" / "result.json").read_text())
    assert list(result["test"]["per_class"]) == ["class 0", "class 1", "class 2"]
    assert (result["test"]["n"], result["validation"]["n"]) == (12, 5)
    kept = json.loads((finished / "run" / "dataset.json").read_text())
    assert kept["images"] == {"train": 43, "validation": 5, "test": 12}
    assert kept["skipped"] == 1
    with (finished / "run" / "skipped_images.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            ["class 0/broken, or not.png", "it is not a JPEG, PNG, BMP, GIF or WebP file"],
        ]
    report = (finished / "run" / "report.html").read_text()
    assert "the pictures of set" in report
    assert "CIFAR" not in (finished / "run" / "model_card.md").read_text()


def commands(workdir: Path, data_dir: str = "") -> dict[str, Callable[[], None]]:
    again = [f"--data_dir={data_dir}"] if data_dir else []
    return {
        "evaluate": functools.partial(evaluate.main, ["evaluate", f"--model={workdir}", *again]),
        "export": functools.partial(export.main, ["export", f"--model={workdir}", "--format=onnx", *again]),
        "explain": functools.partial(explain.main, ["explain", f"--model={workdir}", *again]),
    }


@pytest.mark.slow
def test_commands_read_the_pictures_again_wherever_they_are(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    for command in commands(tmp_path / "run").values():
        command()
    assert f"the metrics agree with {tmp_path / 'run' / 'result.json'}" in capsys.readouterr().out
    (finished / "set").rename(tmp_path / "moved")
    try:
        for command in commands(tmp_path / "run").values():
            with pytest.raises(
                UserError, match=r"^--data_dir has to name the folder or the CSV file of the run's pictures. Received: "
            ):
                command()
        for command in commands(tmp_path / "run", str(tmp_path / "moved")).values():
            command()
        assert "the metrics agree with" in capsys.readouterr().out
    finally:
        (tmp_path / "moved").rename(finished / "set")


@pytest.mark.parametrize("change", ["pixels", "label", "one less", "one more", "other name"])
def test_pictures_that_changed_are_refused_and_names_may(change: str, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "set", tmp_path / "set"))
    file = folder / "class 1" / "003.png"
    if change == "pixels":
        write(folder, {"class 1/003.png": encoded(tinted(1, 999))})
    elif change == "label":
        file.rename(folder / "class 2" / "with another label.png")
    elif change == "one less":
        file.unlink()
    elif change == "one more":
        write(folder, {"class 1/new.png": encoded(tinted(1, 999))})
    else:
        file.rename(file.with_name("renamed.png"))
    shutil.copytree(finished / "run", tmp_path / "run")
    command = commands(tmp_path / "run", str(folder))["evaluate"]
    if change == "other name":
        command()
        return
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match=r"^the images or labels of the data set are others than when the run began"):
        command()
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before


def test_a_resume_with_other_pictures_changes_nothing(finished: Path, tmp_path: Path) -> None:
    """Of a run that has begun: not even its log, which every process begins again."""
    settings = json.loads((finished / "run" / "config.json").read_text()) | {
        "resume": "yes",
        "workdir": tmp_path / "run",
    }
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    file = finished / "set" / "class 1" / "003.png"
    content = file.read_bytes()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    file.write_bytes(encoded(tinted(1, 999)))
    try:
        with pytest.raises(
            UserError, match=r"^the images or labels of the data set are others than when the run began"
        ):
            TRAIN.main(["train", *(f"--{flag}={value}" for flag, value in settings.items())])
    finally:
        file.write_bytes(content)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_predict_and_compare_know_the_classes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    predict.main(["predict", f"--model={finished / 'run'}", str(finished / "set" / "class 2" / "000.png"), "--top=3"])
    assert set(re.findall(r"class \d", capsys.readouterr().out.replace("class 2/000.png", ""))) == {
        f"class {label}" for label in range(3)
    }
    compare.main(["compare", str(finished / "run"), str(finished / "run")])
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_class_that_is_in_no_test_picture(tmp_path: Path) -> None:
    """Nothing can be said about it, and a report is made all the same."""
    for split, labels in (("train", (0, 1, 2)), ("val", (0, 1, 2)), ("test", (0, 1))):
        for label in labels:
            for place in range(8):
                picture = encoded(tinted(label, place + 100 * label + 1000 * len(split)))
                write(tmp_path / "set", {f"{split}/{label}/{place}.png": picture})
    arguments = [f"--dataset=folder:{tmp_path / 'set'}", f"--cache_dir={tmp_path / 'cache'}"]
    TRAIN.main(["train", *arguments, f"--workdir={tmp_path / 'run'}", *SHORT])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["per_class"]["2"]["support"] == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_prepare_decodes_ahead_and_needs_no_more_than_that(tmp_path: Path) -> None:
    write_tinted(tmp_path / "set", 2, 10)
    arguments = (f"--dataset=folder:{tmp_path / 'set'}", f"--cache_dir={tmp_path / 'cache'}", *SHORT)
    done = run("prepare", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "images: 14 train, 2 validation, 4 test; 2 classes" in done.stdout
    assert len(list((tmp_path / "cache").glob("*/images.bin"))) == 1


@pytest.mark.slow
def test_files_and_folders_that_may_not_be_read_or_written(nobody: tuple[str, ...], tmp_path: Path) -> None:
    write_tinted(tmp_path / "set", 2, 10)
    (tmp_path / "set" / "class 0" / "003.png").chmod(0)
    (tmp_path / "cache").mkdir(mode=0o500)
    arguments = (f"--dataset=folder:{tmp_path / 'set'}", f"--cache_dir={tmp_path / 'cache'}", *SHORT)
    prepare = functools.partial(run, "prepare", *arguments, cwd=tmp_path, before=nobody)
    done = prepare()
    assert done.returncode == 2
    assert done.stderr == f"error: --cache_dir cannot be used: Permission denied. Received: {tmp_path / 'cache'}\n"
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "cache").chmod(0o700)
    done = prepare()
    assert done.returncode == 2
    assert "class 0/003.png: it cannot be read: Permission denied. Received: " in done.stderr
    (tmp_path / "set" / "class 1").chmod(0)
    done = prepare()
    (tmp_path / "set" / "class 1").chmod(0o700)
    assert done.returncode == 2
    assert f"cannot be read: {tmp_path}/set/class 1: Permission denied. Received: folder:" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# The same bits.


def write_two_thousand(folder: Path) -> None:
    """2,000 pictures of 5 classes in three splits, of 20 to 3,000 px a side, in all formats; 1,988 are as they should be."""
    chance = random.Random(0)
    kinds = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP"}
    for number in range(1988):
        label = number % 5
        # Eleven of them are as large as 3,000 px.
        longest = 3000 if number < 11 else 200
        height, width = (round(20 * (longest / 20) ** chance.random()) for _ in range(2))
        if number < 2:
            height, width = (3000, 20) if number else (3000, 3000)
        small = Image.fromarray(tinted(label, number, 20, 20))
        pixels = np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
        ending = ("png", "bmp", "png", "png")[number % 4] if number < 100 else chance.choice(list(kinds))
        split = SPLITS[chance.choices(range(3), (8, 1, 1))[0]] if number >= 150 else SPLITS[number % 3]
        name = f"{split}/{('cat', 'dog', 'emu', 'fox', 'gnu')[label]}/{number:04d}.{ending}"
        write(folder, {name: encoded(pixels, kinds[ending])})


def spoil_two_thousand(folder: Path) -> list[str]:
    """As `spoil` does, which copies files by these names."""
    files = {
        split: {name: sorted((folder / split / name).glob("*.png")) for name in ("cat", "dog")} for split in SPLITS
    }
    for split, name, place in (
        *(("train", "cat", 0), ("train", "dog", 1), ("validation", "dog", 2), ("train", "cat", 3), ("test", "dog", 4)),
    ):
        files[split][name][place].rename(folder / split / name / f"{place:04d}.png")
    return spoil(folder)


@pytest.mark.slow
def test_two_thousand_pictures_of_which_twelve_are_bad(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_two_thousand(folder)
    bad = spoil_two_thousand(folder)
    assert sum(file.is_file() for file in folder.rglob("*")) == 2000
    arguments = (f"--dataset=folder:{folder}", f"--cache_dir={tmp_path / 'cache'}", *EXACT)
    done = run("train", *arguments, "--workdir=refused", cwd=tmp_path)
    assert done.returncode == 2
    check_named(done.stderr.rstrip("\n"), bad)
    assert done.stderr.startswith("error: --dataset: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "set"]
    allowed = ("--bad_images=skip", "--allow_duplicates")
    for seed, workdir in enumerate(("first", "second")):
        done = run("train", *arguments, *allowed, f"--workdir={workdir}", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / workdir / "report.html").stat().st_size > 100_000
        with (tmp_path / workdir / "skipped_images.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 7
        # Another seed each time, so that no file gets the name that another one still has.
        rename_at_random(folder, seed)
    assert bits_of(tmp_path / "first") == bits_of(tmp_path / "second")
    # With the copies removed nothing has to be allowed.
    remove_copies(folder)
    config = from_values({"dataset": f"folder:{folder}", "cache_dir": str(tmp_path / "cache"), "bad_images": "skip"})
    assert sum(dict(load_dataset(config).contents.images).values()) == 1988


def remove_copies(folder: Path) -> None:
    """Of each content, all files but the one that is a class's and a split's own."""
    seen = set()
    for file in sorted(folder.rglob("*.png")):
        content = file.read_bytes()
        if content in seen:
            file.unlink()
        seen.add(content)


def start_train(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "cifar_keras.train", *arguments],
        cwd=folder,
        env=variables(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_that_ends_early_goes_on_with_the_same_pictures_alone(tmp_path: Path) -> None:
    """Killed, then asked to end, each time once there is another checkpoint; and refused while a picture is another one."""
    folder = write_tinted(tmp_path / "set", 3, 30)
    arguments = (f"--dataset=folder:{folder}", f"--cache_dir={tmp_path / 'cache'}", *EXACT, "--finetune_epochs=4")
    done = run("train", *arguments, "--workdir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = ("--checkpoint_every_steps=1", "--resume=auto", "--workdir=run")
    seen: set[str] = set()
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = start_train(tmp_path, *arguments, *steps)
        while process.poll() is None:
            there = {path.parent.name for path in (tmp_path / "run").glob("checkpoints/*/manifest.json")}
            if there - seen:
                process.send_signal(number)
                seen |= there
                break
            time.sleep(0.02)
        errors = process.communicate()[1]
        assert process.returncode in (-signal.SIGKILL, 75), errors
    file = folder / "class 1" / "003.png"
    content = file.read_bytes()
    before = sorted((tmp_path / "run").rglob("*"))
    for changed in (encoded(tinted(1, 999)), b"broken"):
        file.write_bytes(changed)
        done = run("train", *arguments, *steps, cwd=tmp_path)
        assert done.returncode == 2
        assert re.fullmatch(r"error: .* Received: .*\n", done.stderr)
        assert sorted((tmp_path / "run").rglob("*")) == before
    file.write_bytes(content)
    moved = folder.rename(tmp_path / "moved")
    done = run("train", *arguments, *steps, f"--dataset=folder:{moved}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert bits_of(tmp_path / "run") == bits_of(tmp_path / "whole")


@pytest.mark.real_data
def test_a_run_on_cifar10_as_files_has_the_bits_of_one_on_cifar10(tmp_path: Path) -> None:
    """50 steps of a ResNet-20 on all of CIFAR-10: as a folder, and as a CSV file of the same files in no order."""
    published = load_published(RunConfig())
    rows = []
    for name in ("train", "test"):
        images, labels = getattr(published, name)
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = f"{name}/{published.class_names[label]}/{place:05d}.png"
            write(tmp_path / "set", {file: encoded(image)})
            rows.append(f"set/{file},{published.class_names[label]},{name}\n")
    np.random.default_rng(0).shuffle(rows)
    (tmp_path / "list.csv").write_text("image_path,label,split\n" + "".join(rows))
    short = (*EXACT, "--finetune_epochs=1", "--finetune_steps_per_epoch=50", "--global_batch_size=64")
    sets = {"plain": "cifar10", "files": f"folder:{tmp_path / 'set'}", "rows": f"csv:{tmp_path / 'list.csv'}"}
    for workdir, dataset in sets.items():
        arguments = (f"--dataset={dataset}", f"--cache_dir={tmp_path / 'cache'}", f"--workdir={workdir}", *short)
        process = start_train(tmp_path, *arguments)
        # On a slow machine there are lines of progress.
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    plain = bits_of(tmp_path / "plain")
    for other in map(bits_of, (tmp_path / "files", tmp_path / "rows")):
        for name in ("weights", "records", "dataset"):
            assert plain[name] == other[name], name
        for part in ("validation_logits", "validation_labels"):
            assert plain["predictions"][part] == other["predictions"][part]
        assert plain["result"]["test"]["accuracy"] == other["result"]["test"]["accuracy"]
