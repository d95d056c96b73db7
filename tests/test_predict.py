"""`predict` on many files, on photographs, and on files that are broken."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from small_runs import TEMPERATURE, finish_small_run

from cifar_keras import predict
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.errors import UserError
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.exporting import classify
from cifar_keras.exporting.saved_model import load_saved_model

IMAGES = make_dataset(0).test.images


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_small_run(tmp_path_factory.mktemp("runs") / "small")


def save(path: Path, pixels: np.ndarray, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
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
