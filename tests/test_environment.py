import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cifar_keras
from cifar_keras.errors import UserError
from cifar_keras.files.environment import _stderr_without, describe_environment, load_keras, source_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    # What a hook that runs the tests has set would point at its own repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def make_checkout(folder: Path) -> Path:
    """Make a git repository with a package in it and return the package's folder."""
    package = folder / "cifar_keras"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text("")
    (folder / ".gitignore").write_text("ignored/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return package


def test_the_description_is_true_and_json_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    monkeypatch.setenv("TF_UNRELATED_SECRET", "hidden")
    described = describe_environment(["GPU A", "GPU B"])
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["python"] == platform.python_version()
    assert described["devices"] == ["GPU A", "GPU B"]
    assert described["variables"]["TF_NUM_INTRAOP_THREADS"] == "3"
    assert "hidden" not in json.dumps(described)
    assert described["processor"]
    assert described["cores"] >= 1
    assert described["versions"]["cifar_keras"] == cifar_keras.__version__
    for name in ("tensorflow", "keras", "tensorflow-datasets", "numpy", "scikit-learn"):
        assert described["versions"][name] == importlib.metadata.version(name)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's description of the processor")
def test_the_machine_matches_what_linux_says() -> None:
    described = describe_environment()
    words = Path("/proc/cpuinfo").read_text().split()
    assert described["instruction_sets"] == [name for name in described["instruction_sets"] if name in words]
    assert ("avx2" in described["instruction_sets"]) == ("avx2" in words)
    kibibytes = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    assert described["memory_gib"] == pytest.approx(kibibytes / 2**20, abs=0.1)


def test_importing_it_does_not_import_tensorflow() -> None:
    code = "import sys; from cifar_keras.files.environment import describe_environment as d; d(); print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_commit_is_that_of_the_package_that_runs(tmp_path: Path) -> None:
    """The whole package in a checkout of its own, because where this module lies in it matters."""
    checkout = tmp_path / "checkout"
    shutil.copytree(
        Path(cifar_keras.__file__).parent, checkout / "cifar_keras", ignore=shutil.ignore_patterns("__pycache__")
    )
    (checkout / "pyproject.toml").touch()
    (checkout / ".gitignore").write_text("__pycache__\n")
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message=first")
    code = "from cifar_keras.files import environment; print(environment.source_commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == git(checkout, "rev-parse", "HEAD")


def test_a_checkout_has_its_commit_and_says_when_it_was_changed(tmp_path: Path) -> None:
    package = make_checkout(tmp_path)
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert source_commit(package) == commit
    (tmp_path / "ignored").mkdir()
    (tmp_path / "ignored" / "run.json").write_text("{}")
    assert source_commit(package) == commit
    (package / "__init__.py").write_text("changed = True\n")
    assert source_commit(package) == f"{commit}+changes"
    git(tmp_path, "checkout", "--quiet", ".")
    (package / "untracked.py").write_text("")
    assert source_commit(package) == f"{commit}+changes"


def test_a_package_installed_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    installed = tmp_path / "ignored" / "site-packages" / "cifar_keras"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    (installed.parent / "pyproject.toml").write_text("")
    assert source_commit(installed) == ""


def test_a_package_untracked_at_the_top_of_another_repository_has_no_commit(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    copied = tmp_path / "copied_package"
    copied.mkdir()
    (copied / "__init__.py").write_text("")
    assert source_commit(copied) == ""


def test_a_copy_committed_into_another_repository_has_no_commit(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    copied = tmp_path / "vendored" / "cifar_keras"
    copied.mkdir(parents=True)
    (copied / "__init__.py").write_text("")
    (copied.parent / "pyproject.toml").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "vendored")
    assert source_commit(copied) == ""


def test_outside_git_or_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain" / "cifar_keras").mkdir(parents=True)
    assert source_commit(tmp_path / "plain" / "cifar_keras") == ""
    package = make_checkout(tmp_path / "checkout")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(package) == ""


def test_the_variables_of_a_git_hook_do_not_point_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_checkout(tmp_path / "ours")
    make_checkout(tmp_path / "other")
    git(tmp_path / "other", "commit", "--quiet", "--allow-empty", "-m", "second")
    commit = git(tmp_path / "ours", "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert source_commit(package) == commit


HOSTILE = {
    "KERAS_BACKEND": "torch",
    "KERAS_MAX_EPOCHS": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "2",
    "KERAS_NNX_ENABLED": "1",
    "TF_USE_LEGACY_KERAS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
SETTINGS = (
    "from cifar_keras.files import environment; environment.load_keras(); import keras, matplotlib;"
    "c = keras.config; print(c.backend(), c.floatx(), c.epsilon(), c.image_data_format(), c.dtype_policy().name,"
    " c.max_epochs(), c.max_steps_per_epoch(), matplotlib.get_backend())"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.5, "backend": "torch"},
        pytest.param({"floatx": "int7"}, marks=pytest.mark.slow),
        pytest.param({"nnx_enabled": True}, marks=pytest.mark.slow),
    ],
)
def test_keras_is_that_of_a_new_machine(settings: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the home folder and a parent program have set; and the file in the home folder is not touched."""
    file = tmp_path / ".keras" / "keras.json"
    file.parent.mkdir()
    file.write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-c", SETTINGS],
        env=os.environ | HOSTILE | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "tensorflow float32 1e-07 channels_last float32 None None agg\n"
    assert json.loads(file.read_text()) == settings


@pytest.mark.slow
def test_keras_leaves_the_home_folder_as_it_is_and_says_nothing(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", SETTINGS],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (tmp_path / ".keras").exists()
    assert done.stderr == ""


def test_a_program_that_has_keras_for_another_backend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras.config.backend", lambda: "jax")
    with pytest.raises(UserError, match=r"KERAS_BACKEND=tensorflow.* Received: jax$"):
        load_keras()


def test_what_is_not_harmless_is_still_said(capfd: pytest.CaptureFixture[str]) -> None:
    with _stderr_without(["harmless"]):
        os.write(2, b"a harmless line\nan error\n")
    assert capfd.readouterr().err == "an error\n"
