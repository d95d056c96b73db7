"""Whole commands on machines that are set up in ways that people have."""

import errno
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from processes import HOSTILE_FILES, HOSTILE_VARIABLES, SECONDS, SYNTHETIC, digests, plain_run, results, run, variables

from cifar_keras.command import COMMANDS
from cifar_keras.data.synthetic import make_dataset
from cifar_keras.errors import UserError
from cifar_keras.files.paths import LOCK
from cifar_keras.files.workdir import claimed


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_run(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_others_have_set_stops_no_command_at_its_start(name: str, tmp_path: Path) -> None:
    """tqdm reads its variables as soon as it is imported, and fails if a number is none."""
    done = run(name, "--no_such_flag", cwd=tmp_path, environment=variables(**HOSTILE_VARIABLES))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "no_such_flag" in done.stderr


@pytest.mark.slow
def test_what_others_have_set_for_other_programs_has_no_effect(plain: Path, tmp_path: Path) -> None:
    """The same metrics, weights and pictures, bit by bit; and every command works."""
    for name, content in HOSTILE_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "matplotlibrc").write_text("image.origin: lower\nfont.family: monospace\n")
    hostile = variables(HOME=str(tmp_path), **HOSTILE_VARIABLES)
    done = run("train", *SYNTHETIC, "--workdir=run", cwd=tmp_path, environment=hostile)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run") == results(plain / "run")
    pictures = digests(tmp_path / "run", "*.png")
    assert len(pictures) >= 6
    assert pictures == digests(plain / "run", "*.png")
    Image.fromarray(make_dataset(0).test.images[0]).save(tmp_path / "a.png")
    for command in (
        "predict --model=run --attribution=maps.png a.png",
        "compare --picture=c.png run run",
        "evaluate --model=run --test_time_augmentation=flip",
        "export --model=run --format=keras,saved_model,onnx",
    ):
        name, *arguments = shlex.split(command)
        told = [run(name, *arguments, cwd=tmp_path, environment=each) for each in (variables(HOME=str(plain)), hostile)]
        assert [each.returncode for each in told] == [0, 0], told[1].stderr
        if name != "export":  # which tells speeds
            assert told[0].stdout == told[1].stdout


@pytest.mark.slow
def test_a_run_needs_no_home_folder_and_its_user_no_name(nobody: tuple[str, ...], tmp_path: Path) -> None:
    nobody = (*nobody, "env", "--unset=HOME")
    done = run("train", *SYNTHETIC, "--workdir=run", cwd=tmp_path, before=nobody)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # and no folder whose name is "~"
    told = run("prepare", f"--data_dir={tmp_path / 'data'}", cwd=tmp_path, before=nobody)
    assert told.returncode == 2
    assert "KERAS_HOME" in told.stderr
    assert told.stderr.count("\n") == 1
    told = run("train", "--weights=none", cwd=tmp_path, before=nobody)
    assert told.returncode == 2
    assert told.stderr.startswith("error: --data_dir ")


@pytest.mark.slow
@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", "| head -n 1"])
def test_a_run_is_whole_whoever_listens(plain: Path, tmp_path: Path, streams: str) -> None:
    command = shlex.join([sys.executable, "-m", "cifar_keras.train", *SYNTHETIC, "--workdir=run"])
    script = f"set -o pipefail; {command} {streams}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=variables(), check=False, capture_output=True, timeout=SECONDS
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert results(tmp_path / "run") == results(plain / "run")


@pytest.mark.slow
def test_ctrl_c_in_a_pipeline_ends_the_run_with_its_own_status(plain: Path, tmp_path: Path) -> None:
    """`train 2>&1 | tee log`: the signal ends `tee` too, so that the last words of the run go nowhere."""
    command = shlex.join(
        [sys.executable, "-m", "cifar_keras.train", *SYNTHETIC, "--finetune_epochs=30", "--workdir=run"]
    )
    script = f"{command} 2>&1 | tee log; exit ${{PIPESTATUS[0]}}"
    process = subprocess.Popen(
        ["bash", "-c", f"trap : INT; {script}"], cwd=tmp_path, env=variables(), start_new_session=True
    )
    while not (tmp_path / "run" / "checkpoints" / "000002").exists():
        time.sleep(0.1)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(SECONDS) == 75


@pytest.mark.slow
def test_a_run_that_goes_on_needs_nothing_of_its_beginning(plain: Path, tmp_path: Path) -> None:
    """Its weights, its teacher and its archive have been moved."""
    shutil.copytree(plain / "run", tmp_path / "teacher")
    shutil.copy(plain / "run" / "model.keras", tmp_path / "weights.keras")
    more = ["--weights=weights.keras", "--teacher=teacher", "--crop_padding=0", "--finetune_epochs=40", "--workdir=run"]
    command = [sys.executable, "-m", "cifar_keras.train", *SYNTHETIC, *more]
    process = subprocess.Popen(command, cwd=tmp_path, env=variables(), stdout=subprocess.DEVNULL)
    while not (tmp_path / "run" / "checkpoints" / "000002").exists():
        time.sleep(0.1)
        assert process.poll() is None
    process.kill()
    process.wait()
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    (tmp_path / "weights.keras").unlink()
    done = run("train", *SYNTHETIC, *more, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["test"]["n"] == 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_has_one_of_another_kind(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that names the process, which the next process finds to be gone."""

    def fail(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with claimed(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).exists()
        with (
            pytest.raises(UserError, match=r"--workdir is in use by another process\. Received: "),
            claimed(tmp_path / "run"),
        ):
            pass
        (tmp_path / "run" / "file").write_text("kept")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
    with claimed(tmp_path / "run"):
        pass


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES])
def test_what_refuses_a_lock_is_named_and_nothing_is_left(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(UserError, match=r"^--workdir .*\. Received: "), claimed(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
