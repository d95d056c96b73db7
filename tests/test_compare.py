import dataclasses
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras import compare
from cifar_keras.config import DataSource
from cifar_keras.data.datasets import is_prepared
from cifar_keras.errors import UserError
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.files.finished_run import FinishedRun, read_finished_run

NAMES = ["cat", "dog", "ship"]


def make_run(folder: Path, logits: NDArray[np.float32], labels: NDArray[np.int64], **more: Any) -> Path:
    """What a run leaves that is compared."""
    folder.mkdir()
    test = classification_metrics(logits, labels, NAMES)
    result = {
        "test": test,
        "validation": test,
        "calibration": {"temperature": 1.5, "test": {"loss": 0.25}},
        "minutes": {"total": 12.34},
        "config": {"global_batch_size": 10},
        **more,
    }
    (folder / "result.json").write_text(json.dumps(result))
    np.savez(folder / "predictions.npz", test_logits=logits, test_labels=labels)
    records = [
        {"phase": "head", "step": 5, "cross_entropy": 1.0},
        {"phase": "head", "step": 9, "cross_entropy": 0.5, "validation_accuracy": 0.6},
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Of 40 images both get 28 right, the first alone 9 and the second alone 3."""
    labels = np.arange(40) % 3
    first, second = (
        np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)]
        for right in (np.arange(40) < 37, (np.arange(40) < 28) | (np.arange(40) >= 37))
    )
    return [
        make_run(tmp_path / "first", first, labels),
        make_run(tmp_path / "second", second, labels, training_pflop=0.09612),
    ]


def test_runs_are_laid_out_and_tested(runs: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    compare.main(["compare", *map(str, runs), f"--picture={tmp_path / 'curves.png'}"])
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines[:3]}) == len({len(line) for line in lines[4:]}) == 1
    assert lines[1].split()[:3] == [str(runs[0]), "92.50", "%"]  # 37 of 40
    assert lines[2].split()[:3] == [str(runs[1]), "77.50", "%"]
    assert lines[1].split()[-3:] == ["0.2500", "12.3", "-"]  # from before operations were counted
    assert lines[2].split()[-1] == "0.0961"
    # 2 * (220 + 66 + 12 + 1) / 4096, of the binomial distribution with n = 12
    assert lines[5].split() == [str(runs[0]), str(runs[1]), "9", "3", "0.15"]
    picture = tf.io.decode_png((tmp_path / "curves.png").read_bytes()).numpy()
    assert picture.std() > 1


def test_runs_on_unequal_classes_are_compared_by_their_averages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 95 cats and 5 ships the first finds every cat and no ship; the second 90 cats and 4 ships."""
    labels = np.array([0] * 95 + [2] * 5)
    first, second = np.zeros(100, np.int64), np.array([0] * 90 + [2] * 9 + [0])
    runs = [
        make_run(tmp_path / name, 5 * np.eye(3, dtype=np.float32)[predicted], labels)
        for name, predicted in (("first", first), ("second", second))
    ]
    compare.main(["compare", *map(str, runs)])
    means, paired = (table.splitlines() for table in capsys.readouterr().out.split("\n\n")[2:])
    recalls = [0.5, (90 / 95 + 4 / 5) / 2]
    assert [line.split()[1] for line in means[1:]] == [f"{100 * recall:.2f}" for recall in recalls]
    assert [line.split()[-1] for line in means[1:]] == ["-", "-"]  # their calibration was not kept
    accuracy, balanced, _ = (
        (float(value), float(low), float(high))
        for value, low, high in re.findall(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", paired[1])
    )
    assert accuracy[0] == -1
    assert accuracy[1] < 0 < accuracy[2]
    assert balanced[0] == pytest.approx(100 * (recalls[1] - recalls[0]), abs=0.01)
    assert 0 < balanced[1] < balanced[0]


def damaged(folder: Path, damage: str) -> None:
    files = {
        "no result": ("result.json", None),
        "half a result": ("result.json", b'{"test": {}}'),
        "no predictions": ("predictions.npz", None),
        "predictions that are text": ("predictions.npz", b"text"),
        "an archive that is cut off": ("predictions.npz", (folder / "predictions.npz").read_bytes()[:300]),
        "an empty archive": ("predictions.npz", b""),
        "an archive of something else": ("predictions.npz", archive_of_text()),
        "no curves": ("metrics.jsonl", None),
        "curves that are text": ("metrics.jsonl", b"text"),
        "curves without a line": ("metrics.jsonl", b""),
    }
    name, content = files[damage]
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)


def archive_of_text() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", "text")
    return content.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        *("no result", "half a result", "no predictions", "predictions that are text", "an archive that is cut off"),
        *("an empty archive", "an archive of something else", "no curves", "curves that are text"),
        "curves without a line",
    ],
)
def test_a_run_that_is_not_whole_is_named(runs: list[Path], damage: str) -> None:
    damaged(runs[1], damage)
    with pytest.raises(UserError, match=r"Received: .*second(/result.json)?$"):
        compare.main(["compare", *map(str, runs)])


def of_run(path: Path, workdir: str, data_dir: str) -> FinishedRun:
    """A finished run whose flags had these values."""
    run = read_finished_run(path)
    data = dataclasses.replace(run.config.data, archive="gone.tar.gz", data_dir=data_dir)
    return run._replace(config=dataclasses.replace(run.config, data=data, workdir=workdir))


def test_what_measures_a_run_reads_a_prepared_folder_and_fetches_nothing(runs: list[Path], tmp_path: Path) -> None:
    """Its archive has been put into the folder, and may be gone since."""
    run = of_run(runs[0], "runs/first", str(tmp_path / "data"))
    for given in ("", str(tmp_path / "elsewhere")):
        folder = Path(given or tmp_path / "data")
        with pytest.raises(UserError, match=rf"^--data_dir has to name .*\. Received: {re.escape(str(folder))}$"):
            run.with_data_dir(given, is_prepared)
        (folder / "cifar10" / "3.0.2").mkdir(parents=True)
        data = run.with_data_dir(given, is_prepared).config.data
        assert (data.archive, data.data_dir, data.data_source) == ("", str(folder), DataSource.PREPARED)


@pytest.mark.parametrize("workdir", ["runs/first", "./runs/first/"])
def test_a_runs_data_is_found_from_anywhere(
    workdir: str, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started as `--workdir=runs/first --data_dir=data`; the folder of both has another name since."""
    (tmp_path / "old" / "runs").mkdir(parents=True)
    runs[0].rename(tmp_path / "old" / "runs" / "first")
    (tmp_path / "old" / "data" / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    for path in (tmp_path / "new" / "runs" / "first", Path("../new/runs/first")):
        found = of_run(path, workdir, "data").with_data_dir("", is_prepared).config.data.data_dir
        assert Path(found) == tmp_path / "new" / "data"
    other = of_run(path, "elsewhere/first", "data")  # moved away from its data: nobody knows
    with pytest.raises(UserError, match=r"^--data_dir has to name .* Received: data$"):
        other.with_data_dir("", is_prepared)


def test_a_run_of_drawn_images_needs_no_folder(runs: list[Path]) -> None:
    run = of_run(runs[0], "runs/first", "~nobody-of-this-name/data")
    data = dataclasses.replace(run.config.data, data_source=DataSource.SYNTHETIC)
    run = run._replace(config=dataclasses.replace(run.config, data=data))
    assert run.with_data_dir("", is_prepared).config.data.data_source is DataSource.SYNTHETIC
    assert run.with_data_dir("elsewhere", is_prepared).config.data.data_dir == "elsewhere"  # where other test sets are


def test_a_pickle_is_not_read(runs: list[Path]) -> None:
    labels: Any = np.array([{"a": 1}] * 40, dtype=object)
    np.savez(runs[1] / "predictions.npz", allow_pickle=True, test_logits=labels, test_labels=labels)
    with pytest.raises(UserError, match="allow_pickle"):
        compare.main(["compare", *map(str, runs)])


def test_runs_on_other_images_are_refused(runs: list[Path], tmp_path: Path) -> None:
    labels = np.arange(40) % 2
    other = make_run(tmp_path / "other", np.eye(3, dtype=np.float32)[labels], labels)
    with pytest.raises(UserError, match=r"other images.* Received: .*first and .*other$"):
        compare.main(["compare", str(runs[0]), str(other)])


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ([], "none"),
        (["."], r"\."),
        (["."] * 9, r"\. \. .*"),
        ([".", "missing"], "'missing'"),
        ([".", "~nobody/run"], "'~nobody/run'"),
        ([".", ".", "--picture=missing/a.png"], "missing/a.png"),
    ],
)
def test_what_cannot_be_compared_is_named(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, arguments: list[str], received: str
) -> None:
    monkeypatch.chdir(runs[0])
    with pytest.raises(UserError, match=rf"Received: {received}$"):
        compare.main(["compare", *arguments])
