"""`predict` on many files, on photographs, and on files that are broken."""

import csv
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from sklearn import metrics as sklearn_metrics
from small_networks import small_classifier
from small_runs import TEMPERATURE, finish_small_run

from cifar_keras import flags, predict
from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.errors import UserError
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.exporting import classify
from cifar_keras.exporting.saved_model import export_saved_model, load_saved_model

IMAGES, LABELS = make_dataset(0).test


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_small_run(tmp_path_factory.mktemp("runs") / "small")


def save(path: Path, pixels: np.ndarray, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_one_broken_file_does_not_hide_the_others(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [save(tmp_path / f"{number}.png", IMAGES[number]) for number in range(3)]
    cut = tmp_path / "cut.png"
    cut.write_bytes(save(tmp_path / "whole.png", IMAGES[3].repeat(4, axis=0)).read_bytes()[:900])
    text = tmp_path / "text.png"
    text.write_text("text")
    files = [good[0], text, good[1], tmp_path / "missing.png", cut, good[2]]
    with pytest.raises(SystemExit) as stopped:
        predict.main(["predict", f"--model={workdir}", "--top=1", *map(str, files)])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == list(map(str, good))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert sorted(line.rpartition("Received: ")[2] for line in errors) == sorted(
        map(str, (text, tmp_path / "missing.png", cut))
    )


def test_files_have_the_probabilities_of_their_pixels_however_they_come(workdir: Path, tmp_path: Path) -> None:
    """Turned or not, small and large, one format beside another; the model's own, by Keras on what Pillow decodes."""
    large = np.asarray(Image.fromarray(IMAGES[0]).resize((300, 200)))
    files = [
        save(tmp_path / f"{place}_{orientation}.png", pixels, orientation)
        for place, pixels in enumerate((IMAGES[1], large))
        for orientation in range(1, 9)
    ]
    classifier = keras.models.load_model(workdir / "model.keras", compile=False)
    found = dict(classify.classify(load_saved_model(workdir), files))
    assert list(found) == files
    for file, row in found.items():
        upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        wanted = softmax(classifier.predict(upright[None], verbose=0), TEMPERATURE)[0]
        assert not isinstance(row, UserError)
        np.testing.assert_allclose(row, wanted, atol=1e-4)


def test_what_is_in_memory_does_not_depend_on_the_number_of_files(tmp_path: Path) -> None:
    small = save(tmp_path / "small.png", IMAGES[0])
    photograph = save(tmp_path / "photograph.jpg", np.zeros((3000, 4000, 3), np.uint8))
    batches = list(classify._batches([small] * 70 + [photograph] * 5 + [small]))
    assert [len(batch.files) for batch in batches] == [32, 32, 6, 1, 1, 1, 1, 1, 1]
    assert [file.path for batch in batches for file in batch.files] == [small] * 70 + [photograph] * 5 + [small]


@pytest.mark.slow
def test_lines_come_as_they_are_known(workdir: Path, tmp_path: Path) -> None:
    """The first line is there while a later file is still not: it is a pipe that nobody has written to."""
    small = save(tmp_path / "small.png", IMAGES[0])
    photograph = save(tmp_path / "large.png", np.zeros((2100, 2000, 3), np.uint8))
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "cifar_keras.predict", f"--model={workdir}"]
    process = subprocess.Popen(
        [*command, str(photograph), str(small), str(pipe)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(str(photograph))
    with pipe.open("wb") as file:
        file.write(small.read_bytes())
    rest = process.stdout.read().splitlines()
    assert process.wait() == 0
    assert [line.split("  ")[0] for line in rest] == [str(small), str(pipe)]
    assert rest[0].split("  ")[1:] == rest[1].split("  ")[1:]


@pytest.mark.slow
def test_names_that_are_no_text_are_shown_escaped(workdir: Path, tmp_path: Path) -> None:
    names: list[bytes] = [b"caf\xe9.png", b"two\nlines.png", "ünï.png".encode()]
    for name in names:
        save(tmp_path / "a.png", IMAGES[0]).rename(os.fsdecode(bytes(tmp_path) + b"/" + name))
    command: list[str | bytes] = [sys.executable, "-m", "cifar_keras.predict", f"--model={workdir}", *names]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = [line.split("  ")[0] for line in done.stdout.decode().splitlines()]
    assert shown == ["caf\\xe9.png", "two\\nlines.png", "ünï.png"]


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.png", IMAGES[0]).read_bytes())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(UserError, match=r"more than 100,000,000 pixels: 100000 x 100000\. Received: a\.png$"):
        classify.header_of(Path("a.png"), bytes(content))


def test_decoding_keeps_bytes(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", IMAGES[0])
    np.testing.assert_array_equal(classify.decode(file, file.read_bytes()), IMAGES[0])
    with pytest.raises(
        UserError, match=r"^the file is not a picture that can be read: it is damaged: .* Received: .*a\.png$"
    ):
        classify.decode(file, tf.io.encode_png(IMAGES[0]).numpy()[:400])


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def alone(model: tf.Module, file: Path) -> np.ndarray:
    """What the model serves for a file that is a batch of its own."""
    row: np.ndarray = model.serve_bytes(tf.constant([file.read_bytes()]))["probabilities"].numpy()[0]
    return row


def test_a_table_has_what_the_model_serves_for_each_file(workdir: Path, tmp_path: Path) -> None:
    """In a folder of many batches and sizes, with a broken file and an odd name."""
    for number in range(80):
        side = 32 + number % 3
        pixels = np.asarray(Image.fromarray(IMAGES[number]).resize((side, side + 1)))
        save(tmp_path / "photos" / f"{number % 7}" / f"{number}, a.png", pixels)
    (tmp_path / "photos" / "broken.png").write_text("text")
    with pytest.raises(SystemExit) as stopped:
        predict.main(
            ["predict", f"--model={workdir}", f"--output={tmp_path / 'p.csv'}", "--top=2", str(tmp_path / "photos")]
        )
    assert stopped.value.code == 2
    rows = read_table(tmp_path / "p.csv")
    assert list(rows[0]) == ["filename", "label_0", "prob_0", "label_1", "prob_1", "error"]
    files = sorted((tmp_path / "photos").rglob("*.png"))
    assert [row["filename"] for row in rows] == list(map(str, files))
    assert len(files) == 81
    model = load_saved_model(workdir)
    for row, file in zip(rows, files, strict=True):
        if file.name == "broken.png":
            assert row["error"] == (
                "the file is not a picture that can be read: it is not a JPEG, PNG, BMP, GIF or WebP file"
            )
            assert {row[name] for name in row if name not in ("filename", "error")} == {""}
            continue
        wanted = alone(model, file)
        first, second = wanted.argsort()[:-3:-1]
        assert (row["label_0"], row["label_1"], row["error"]) == (CLASS_NAMES[first], CLASS_NAMES[second], "")
        np.testing.assert_allclose([float(row["prob_0"]), float(row["prob_1"])], wanted[[first, second]], atol=1e-5)


def test_a_batch_of_one_is_served_bit_for_bit(workdir: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", IMAGES[0])
    model = load_saved_model(workdir)
    ((_, row),) = classify.classify(model, [file])
    np.testing.assert_array_equal(row, alone(model, file))


def save_test_images(folder: Path) -> np.ndarray:
    """The test images of the run in folders of their classes. Returns their labels in the order of the names."""
    for number, label in enumerate(LABELS):
        save(folder / CLASS_NAMES[label] / f"{number}.png", IMAGES[number])
    order = sorted(range(len(LABELS)), key=lambda number: (CLASS_NAMES[LABELS[number]], f"{number}.png"))
    return np.array(order)


def test_a_folder_of_classes_also_gives_metrics(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = save_test_images(tmp_path / "photos")
    output = tmp_path / "p.jsonl"
    predict.main(["predict", f"--model={workdir}", f"--output={output}", str(tmp_path / "photos")])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["true_label"] for row in rows] == [CLASS_NAMES[label] for label in LABELS[order]]
    accuracy = np.mean([row["label"] == row["true_label"] for row in rows])
    kept = np.load(workdir / "predictions.npz")
    assert accuracy == (kept["test_logits"].argmax(axis=1) == kept["test_labels"]).mean()
    out = capsys.readouterr().out
    assert f"accuracy {accuracy:.2%}".replace("%", " %") in out
    loss = sklearn_metrics.log_loss(kept["test_labels"], softmax(kept["test_logits"], TEMPERATURE))
    assert f"loss {loss:.4f}" in out
    # One folder that is no class, and the true classes are unknown.
    save(tmp_path / "photos" / "unicorn" / "1.png", IMAGES[0])
    predict.main(["predict", f"--model={workdir}", f"--output={output}", str(tmp_path / "photos")])
    assert "true_label" not in json.loads(output.read_text().splitlines()[0])
    assert "accuracy" not in capsys.readouterr().out


def test_what_is_not_probable_enough_is_unknown(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = save_test_images(tmp_path / "photos")
    kept = np.load(workdir / "predictions.npz")
    confidence = softmax(kept["test_logits"], TEMPERATURE).max(axis=1)[order]
    right = (kept["test_logits"].argmax(axis=1) == kept["test_labels"])[order]
    wanted = np.sort(confidence)[len(confidence) // 2] - 1e-4
    output = tmp_path / "p.csv"
    arguments = ["predict", f"--model={workdir}", f"--output={output}", str(tmp_path / "photos")]
    predict.main([*arguments, f"--min_probability={wanted}"])
    rows = read_table(output)
    np.testing.assert_array_equal([row["label"] == "unknown" for row in rows], confidence < wanted)
    np.testing.assert_allclose([float(row["prob"]) for row in rows], confidence, atol=1e-5)
    answered = confidence >= wanted
    out = capsys.readouterr().out
    assert f"unknown: {(~answered).sum()} of {len(order)} files; of the others {right[answered].mean():.2%}" in out


def test_a_precision_is_held_on_the_validation_images(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path / "a.png", IMAGES[0])
    predict.main(["predict", f"--model={workdir}", "--precision=0.3", str(file)])
    said = re.search(r"below a probability of (\S+) .* That leaves (\d+) of 40 ", capsys.readouterr().err)
    assert said
    kept = np.load(workdir / "predictions.npz")
    probabilities = softmax(kept["validation_logits"], TEMPERATURE)
    assert (probabilities.max(axis=1) >= float(said[1]) - 1e-4).sum() == int(said[2])
    with pytest.raises(
        UserError, match=r"^--precision is out of reach: on the 40 validation images .* Received: 0.999$"
    ):
        predict.main(["predict", f"--model={workdir}", "--precision=0.999", str(file)])


def test_what_predict_refuses_before_tensorflow(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = save(tmp_path / "a.png", IMAGES[0])
    (tmp_path / "empty").mkdir()
    cases = {
        (str(tmp_path / "empty"),): r"the folder has no image files, .*empty",
        (str(tmp_path / "*.jpg"),): r"the pattern of image files matches nothing\. .*\*\.jpg",
        ("--output=p.xls", str(small)): r"--output has to end with .*p\.xls",
        ("--output=gone/p.csv", str(small)): r"--output cannot be written: there is no such folder.*gone/p\.csv",
        ("--attribution=maps.png", *[str(small)] * 13): r"--attribution draws at most 12 images\. Received: 13",
        (str(tmp_path / "gone.png"),): r"the image file cannot be read: No such file .*gone\.png",
    }
    for names, message in cases.items():
        with pytest.raises(UserError, match=f"^{message}$"):
            predict.find_files(flags.parse_predict(["predict", f"--model={workdir}", *names]))
    # All that cannot be read are named.
    with pytest.raises(UserError, match=r"b\.png$"):
        predict.find_files(flags.parse_predict(["predict", f"--model={workdir}", "/gone/a.png", "/gone/b.png"]))
    assert capsys.readouterr().err == (
        "error: the image file cannot be read: No such file or directory. Received: /gone/a.png\n"
    )


def test_a_class_that_is_called_unknown_is_not_confused_with_one(tmp_path: Path) -> None:
    export_saved_model(small_classifier(), ["unknown", *CLASS_NAMES[1:]], tmp_path / "saved_model")
    file = save(tmp_path / "a.png", IMAGES[0])
    predict.main(["predict", f"--model={tmp_path}", str(file)])
    with pytest.raises(UserError, match=r"^--min_probability and --precision call files unknown, which a class .*"):
        predict.main(["predict", f"--model={tmp_path}", "--min_probability=0.5", str(file)])


def test_batches_that_are_decoded_at_the_same_time_are_limited(workdir: Path, tmp_path: Path) -> None:
    """The lowest limit there is, where every batch waits for the one before it, gives the same rows."""
    files = [save(tmp_path / f"{number}.png", IMAGES[number]) for number in range(70)]
    model = load_saved_model(workdir)
    together = [row for _, row in classify.classify(model, files)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify, "PIXELS_AT_ONCE", 1)
        one_by_one = [row for _, row in classify.classify(model, files)]
    assert len(together) == len(one_by_one) == 70
    for row, wanted in zip(together, one_by_one, strict=True):
        np.testing.assert_array_equal(row, wanted)


def test_a_caller_may_stop_early(workdir: Path, tmp_path: Path) -> None:
    small = save(tmp_path / "small.png", IMAGES[0])
    drawn = 0

    def files() -> Iterator[Path]:
        nonlocal drawn
        while True:
            drawn += 1
            yield small

    rows = classify.classify(load_saved_model(workdir), files())
    next(rows)
    assert isinstance(rows, Generator)
    rows.close()
    assert drawn < (classify.WORKERS + 3) * classify.BATCH_SIZE
