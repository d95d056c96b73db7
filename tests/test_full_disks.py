"""Whole commands on disks that get full, at one moment or another."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from picture_files import noise, write_classes
from PIL import Image
from processes import SYNTHETIC, plain_run, results, run

from cifar_keras.data.cifar10 import sources, tfds_folder
from cifar_keras.data.cifar10.layout import Contents
from cifar_keras.data.pictures import store
from cifar_keras.data.pictures.listing import list_folder
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.data.types import PublishedDataset
from cifar_keras.errors import UserError


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_run(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for a file system of the test's own."""
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


def mount(place: Path, kilobytes: int, *options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *options]), "none", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("the system does not let a test mount a file system")


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [40, 1800, 4600, 7500, 8800])
def test_a_disk_that_is_full_is_said_and_nothing_is_lost(plain: Path, disk: Path, kilobytes: int) -> None:
    """At one moment or another of a run, which is whole when there is room again."""
    mount(disk, kilobytes)
    arguments = [*SYNTHETIC, f"--workdir={disk / 'run'}"]
    done = run("train", *arguments, cwd=disk)
    assert done.returncode == 2, (done.stdout, done.stderr)
    (error,) = [
        line for line in done.stderr.splitlines() if not line.startswith("warning: the checkpoint was not saved")
    ]
    assert error.startswith("error: --workdir cannot be ")
    assert "No space left on device" in error
    assert str(disk / "run") in error
    mount(disk, 100_000, "remount")
    done = run("train", *arguments, "--resume=auto", cwd=disk)
    assert done.returncode == 0, done.stderr
    assert results(disk / "run") == results(plain / "run")
    assert [path for path in (disk / "run").iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "evaluate --model=run --test_sets=corruptions",
        "export --model=run --format=saved_model,onnx",
        "predict --model=run --attribution=maps.png a.png",
        "compare --picture=c.png run run",
    ],
)
@pytest.mark.parametrize("spare", [8, 900])  # KiB that are free
def test_other_commands_say_that_a_disk_is_full(plain: Path, disk: Path, command: str, spare: int) -> None:
    mount(disk, 20_000)
    shutil.copytree(plain / "run", disk / "run")
    Image.fromarray(make_dataset(0).test.images[0]).save(disk / "a.png")
    with (disk / "filler").open("wb") as filler:
        filler.write(bytes(shutil.disk_usage(disk).free - 1024 * spare))
    name, *arguments = shlex.split(command)
    done = run(name, *arguments, cwd=disk)
    if done.returncode == 0:
        assert spare == 900  # there was room enough
        return
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert "Traceback" not in done.stderr
    assert results(disk / "run") == results(plain / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 60, 100, 120, 140, 160, 4000])
def test_a_data_folder_on_a_full_disk_is_named(
    small_dataset: PublishedDataset, small_contents: Contents, disk: Path, kilobytes: int
) -> None:
    """At whatever moment; and nothing of it is left."""
    mount(disk, kilobytes)
    if kilobytes == 4000:  # there is room enough
        tfds_folder.write_folder(small_dataset, disk / "data", small_contents)
        return
    message = rf"^--data_dir has to be .*(No space left on device|Not enough disk space).* Received: {disk}/data$"
    with pytest.raises(UserError, match=message), sources._writing(f"{disk}/data"):
        tfds_folder.write_folder(small_dataset, disk / "data", small_contents)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("kilobytes", [4, 12, 40, 100])
def test_a_cache_of_pictures_on_a_full_disk_is_named(
    kilobytes: int, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever moment another program filled it; and nothing is left but the empty file that is the lock."""
    mount(disk, kilobytes)
    folder = write_classes(tmp_path / "set", {"cat": 30, "dog": 30}, lambda seed: noise(seed, 32, 32))
    listing, size = list_folder(str(folder)), store.Size(32, own=True)
    monkeypatch.setattr(store, "SPARE_BYTES", -1_000_000)
    with pytest.raises(
        UserError, match=rf"^--cache_dir cannot be used: No space left on device. Received: {disk}/cache$"
    ):
        store.store(listing, size, f"{disk}/cache")
    assert [path for path in disk.rglob("*") if path.is_file() and path.stat().st_size] == []
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"^--cache_dir needs 0\.00 GB for the decoded pictures, and 0\.00 GB are free"):
        store.store(listing, size, f"{disk}/cache")
    mount(disk, 80_000, "remount")
    assert len(store.store(listing, size, f"{disk}/cache").images) == 60
