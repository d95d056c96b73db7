"""`predict` on names, links and damaged files that one does not expect in a folder."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_runs import finish_small_run

from cifar_keras import predict
from cifar_keras.data.pictures.finding import expand_patterns, picture_files
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.exporting import classify
from cifar_keras.exporting.saved_model import load_saved_model

IMAGE = make_dataset(0).test.images[0].repeat(4, axis=0).repeat(4, axis=1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_small_run(tmp_path_factory.mktemp("runs") / "small")


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, kind)
    return file.getvalue()


def found_in(*names: Path | str) -> list[str]:
    return [str(file.path) for file in picture_files(expand_patterns(map(str, names)))]


def test_a_link_to_itself_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    assert found_in(tmp_path) == [str(tmp_path / "a.png"), str(tmp_path / "loop.png")]


@pytest.mark.parametrize("pattern", ["photos/**", "photos/**/", "photos/**/*", "**/photos/**/**", "photos/*"])
def test_a_pattern_that_matches_a_folder_and_what_is_in_it_gives_each_file_once(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["photos/a.png", "photos/sub/b.png", "photos/sub/sub/c.png", "photos/z.png"]
    for file in map(Path, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert found_in(pattern) == files


def test_a_name_that_no_file_can_have_does_not_hide_the_others(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does a link to itself. Both are rows of the table, and the exit status tells."""
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "loop.png").symlink_to("loop.png")
    too_long = tmp_path / f"{'x' * 300}.png"
    output = tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as stopped:
        predict.main(["predict", f"--model={workdir}", f"--output={output}", str(too_long), str(tmp_path)])
    assert stopped.value.code == 2
    lines = output.read_text("utf-8").splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == [
        str(too_long),
        str(tmp_path / "a.png"),
        str(tmp_path / "loop.png"),
    ]
    assert "File name too long" in lines[0]
    assert "symbolic links" in lines[2]


def test_a_file_has_the_same_row_beside_any_other_file(workdir: Path, tmp_path: Path) -> None:
    """Random damage: TensorFlow decodes some of these files that Pillow refuses, and the other way round."""
    model = load_saved_model(workdir)
    generator = np.random.default_rng(0)
    files = []
    for number in range(96):
        kind = ("GIF", "GIF", "PNG", "JPEG")[number % 4]
        content = bytearray(encoded(kind))
        for place in generator.integers(len(content), size=3):
            content[place] = generator.integers(256)
        files.append(tmp_path / f"{number}.{kind.lower()}")
        files[-1].write_bytes(content)
    together = dict(classify.classify(model, files))
    alone = {path: row for file in files for path, row in classify.classify(model, [file])}
    assert {str(path): str(row) for path, row in together.items() if not isinstance(row, np.ndarray)} == {
        str(path): str(row) for path, row in alone.items() if not isinstance(row, np.ndarray)
    }
    rows = [(together[path], row) for path, row in alone.items() if isinstance(row, np.ndarray)]
    assert 20 < len(rows) < len(files)
    for beside_others, by_itself in rows:
        np.testing.assert_allclose(np.asarray(beside_others), np.asarray(by_itself), atol=1e-5)


def test_a_file_is_served_as_stored_though_another_in_its_batch_is_damaged(workdir: Path, tmp_path: Path) -> None:
    """The rest of a GIF file's data is broken. TensorFlow gives its first lines, and Pillow an error."""
    model = load_saved_model(workdir)
    cut = tmp_path / "cut.png"
    cut.write_bytes(encoded("PNG")[:-200])
    damaged = None
    for seed in range(200):
        content = bytearray(encoded("GIF"))
        generator = np.random.default_rng(seed)
        content[generator.integers(len(content) // 2, len(content))] = generator.integers(256)
        if not is_read_by_pillow(bytes(content)) and is_served(model, bytes(content)):
            damaged = bytes(content)
            break
    assert damaged is not None
    (file := tmp_path / "damaged.gif").write_bytes(damaged)
    row = dict(classify.classify(model, [cut, file]))[file]
    assert isinstance(row, np.ndarray)
    np.testing.assert_allclose(row, model.serve_bytes(tf.constant([damaged]))["probabilities"].numpy()[0], atol=1e-5)


def is_read_by_pillow(content: bytes) -> bool:
    try:
        Image.open(io.BytesIO(content)).load()
    except OSError:
        return False
    return True


def is_served(model: tf.Module, content: bytes) -> bool:
    try:
        model.serve_bytes(tf.constant([content]))
    except tf.errors.InvalidArgumentError:
        return False
    return True
