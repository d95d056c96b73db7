import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar_keras.errors import UserError
from cifar_keras.training import checkpoints as checkpoints_lib
from cifar_keras.training.checkpoints import Checkpoint, Checkpoints, numbered, read_variables, write_variables

FILES = ("arrays.npz", "values.json", "manifest.json")


def checkpoint(number: int) -> Checkpoint:
    generator = np.random.default_rng(number)
    arrays: dict[str, Any] = {
        "classifier/0/0": generator.normal(size=(3, 4)).astype(np.float32),
        "optimizer/0/0": np.asarray(number, np.int64),
        "empty": np.zeros((0, 2), np.float32),
    }
    return Checkpoint({"step": number, "best": None, "name": "Ähre"}, arrays)


def assert_same(found: Checkpoint | None, wanted: Checkpoint) -> None:
    assert found is not None
    assert found.values == wanted.values
    assert found.arrays.keys() == wanted.arrays.keys()
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, wanted.arrays[name])
        assert array.dtype == wanted.arrays[name].dtype


def test_the_newest_checkpoint_comes_back_and_the_oldest_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    for number in range(12):
        checkpoints.save(checkpoint(number))
        assert_same(Checkpoints(tmp_path / "checkpoints", keep=2).newest(), checkpoint(number))
        assert len(list((tmp_path / "checkpoints").iterdir())) == min(number + 1, 2)
    checkpoints.remove()
    assert list(tmp_path.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    name: str, damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for number in range(2):
        checkpoints.save(checkpoint(number))
    newest = max(tmp_path.iterdir())
    damage(newest / name)
    assert_same(checkpoints.newest(), checkpoint(0))
    assert capsys.readouterr().err.startswith(f"warning: {newest} is damaged and not used: ")
    checkpoints.save(checkpoint(2))  # the run goes on
    assert_same(checkpoints.newest(), checkpoint(2))
    for path in tmp_path.iterdir():
        for file in path.iterdir():
            empty(file)
    with pytest.raises(UserError, match=r"every checkpoint of the run is damaged\. Received: "):
        checkpoints.newest()


def test_every_byte_of_the_small_files_is_under_watch(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for number in range(2):
        checkpoints.save(checkpoint(number))
    newest = max(tmp_path.iterdir())
    for name in ("values.json", "manifest.json"):
        content = (newest / name).read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1
            (newest / name).write_bytes(changed)
            found = checkpoints.newest()
            assert found is not None
            # White space and the braces of the manifest may change without harm; what is read then is the newest, whole.
            assert_same(found, checkpoint(1 if found.values["step"] == 1 else 0))
        (newest / name).write_bytes(content)
    assert_same(checkpoints.newest(), checkpoint(1))


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(checkpoint(0))
    path = next(tmp_path.iterdir())
    np.savez(path / "arrays.npz", evil=np.asarray([{"a": 1}], dtype=object))
    manifest = {name: checkpoints_lib._digest(path / name) for name in ("arrays.npz", "values.json")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="damaged"):
        checkpoints.newest()


def test_a_full_disk_leaves_the_checkpoints_before_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in range(2):
        checkpoints.save(checkpoint(number))

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(checkpoint(2))
    assert sorted(tmp_path.iterdir()) == before
    assert_same(checkpoints.newest(), checkpoint(1))
    checkpoints.save(checkpoint(3))
    assert_same(checkpoints.newest(), checkpoint(3))


@pytest.mark.slow
def test_a_real_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    """A process that may write 4 KB a file, in place of a file system of its own, which takes rights to make."""
    program = f"""
import resource, signal, sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from pathlib import Path
from cifar_keras.training.checkpoints import Checkpoints, Checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(Path({str(tmp_path)!r}), 2)
checkpoints.save(Checkpoint({{"step": 1}}, {{"small": np.zeros(8)}}))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoints.save(Checkpoint({{"step": 2}}, {{"large": np.zeros(8192)}}))
except OSError as error:
    print("refused:", error.strerror)
print("newest:", checkpoints.newest().values["step"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.splitlines() == ["refused: File too large", "newest: 1"]
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


def test_a_checkpoint_is_not_written_where_the_workdir_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Checkpoints(tmp_path / "gone" / "checkpoints", keep=2).save(checkpoint(0))
    assert list(tmp_path.iterdir()) == []


def test_variables_come_back_and_others_are_refused() -> None:
    strategy = tf.distribute.get_strategy()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
    arrays = read_variables("classifier", numbered(model.variables), strategy)
    values = [np.array(variable) for variable in model.variables]
    for variable in model.variables:
        variable.assign(variable + 1)
    write_variables("classifier", numbered(model.variables), strategy, arrays)
    for variable, value in zip(model.variables, values, strict=True):
        np.testing.assert_array_equal(variable, value)
    for variables in (model.variables[:-1], [*model.variables, *model.variables]):
        with pytest.raises(ValueError, match="other variables"):
            write_variables("classifier", numbered(variables), strategy, arrays)
