"""The environment of a run: machine, versions, environment variables, and the commit of the code.

This module also sets the variables that libraries read, and starts TensorFlow and Keras. Importing it does not import TensorFlow.
"""

import contextlib
import ctypes
import importlib.metadata
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cifar_keras
from cifar_keras.errors import UserError

PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "keras-cv", "numpy", "scikit-learn")

# Environment variables that people set to change the speed or the bits of a run. A run records those that are set. None of them holds
# a user's path. All other variables have no effect (docs/environment.md).
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "TF_DETERMINISTIC_OPS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_GPU_ALLOCATOR",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)

# A parent program or a shell's profile may have set these variables for other programs. Here they have no effect.
_OVERRIDDEN = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_NNX_ENABLED": "0",
    # This backend draws into memory: no window is ever needed.
    "MPLBACKEND": "agg",
    "TF_USE_LEGACY_KERAS": "0",
}
_REMOVED = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "PYTHONWARNINGS")

# Messages that TensorFlow writes at each start, before its log level takes effect.
_HARMLESS = (
    "All log messages before absl::InitializeLog() is called are written to STDERR",
    "oneDNN custom operations are on",
    "Could not find cuda drivers on your machine",
)
# TensorFlow reports a machine without a GPU as this error.
_NO_DRIVER = "failed call to cuInit"

# Instruction sets by their Linux names. They decide which matrix kernels oneDNN takes, and with them the speed of a CPU run.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")

GIT_TIMEOUT_SECONDS = 30


def set_variables() -> None:
    """Set the environment variables that libraries read at import, for this process and for those that it starts.

    TensorFlow leaves oneDNN's kernels off on x86 processors without AVX-512 VNNI. They are several times as fast there: see the
    trials `quickstart-onednn_on` and `quickstart-onednn_off` in `experiments/README.md`.
    """
    os.environ.update(_OVERRIDDEN)
    for name in [name for name in os.environ if name in _REMOVED or name.startswith("TQDM_")]:
        del os.environ[name]
    # Matplotlib warns if there is no home folder for its cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Errors only: the other messages are about GPUs that are not there.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def load_keras() -> None:
    """Import TensorFlow and Keras, with the settings of a machine whose user has set nothing for them.

    Raises:
        UserError: the program has already imported Keras for another backend.
    """
    set_variables()
    with _no_settings_of_keras():
        start_tensorflow()
        import keras
    if keras.config.backend() != "tensorflow":
        raise UserError(
            f"Keras has to be imported for TensorFlow (KERAS_BACKEND=tensorflow). Received: {keras.config.backend()}"
        )
    # A program that used Keras before this call may have changed these.
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


def start_tensorflow() -> None:
    """Import TensorFlow without the messages that it writes on every machine.

    On a machine without an NVIDIA driver, the error about the missing GPU is left out too.
    """
    with _stderr_without(_HARMLESS if _has_nvidia_driver() else (*_HARMLESS, _NO_DRIVER)):
        import tensorflow as tf

        # Looks for a driver, and writes that error if there is none.
        tf.config.list_physical_devices()


@contextlib.contextmanager
def _no_settings_of_keras() -> Iterator[None]:
    """Hide the keras.json of the home folder inside the block.

    Keras and TensorFlow's old Keras would read this file when they are imported, and would create it.
    """
    earlier = os.environ.get("KERAS_HOME")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["KERAS_HOME"] = empty
        try:
            yield
        finally:
            del os.environ["KERAS_HOME"]
            if earlier is not None:
                os.environ["KERAS_HOME"] = earlier


def _has_nvidia_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _stderr_without(harmless: Sequence[str]) -> Iterator[None]:
    """Hold back what the block writes to stderr, and write it when the block ends, without the harmless lines.

    This includes what C++ code writes.

    Args:
        harmless: a line that contains one of these texts is dropped.
    """
    kept = os.dup(2)
    with os.fdopen(os.memfd_create("stderr"), "rb") as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held.read().decode(errors="backslashreplace").splitlines():
                if not any(words in line for words in harmless):
                    print(line, file=sys.stderr)


def describe_environment(devices: Sequence[str] = ()) -> dict[str, Any]:
    """Return a description of machine and software, in plain values ready for JSON.

    Args:
        devices: names of the devices that the run computes on, as TensorFlow gives them, e.g. "NVIDIA H100 80GB HBM3".

    Returns:
        A dict with these keys:

        - `python`, `operating_system`, `processor`: strings.
        - `cores`: how many this process may use.
        - `memory_gib`: of the whole machine; None where the system does not tell.
        - `instruction_sets`: those that decide the processor's matrix kernels; empty where the system does not tell.
        - `devices`: as given.
        - `versions`: of each package; None where it is not installed.
        - `variables`: environment variables that are set and change speed or bits.
    """
    cpu = _cpu_description()
    return {
        "python": platform.python_version(),
        "operating_system": platform.platform(),
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "instruction_sets": instruction_sets(),
        "devices": list(devices),
        "versions": versions(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def versions() -> dict[str, str | None]:
    """Return the versions of this package and of each of `PACKAGES`; None for a package that is not installed."""
    return {"cifar_keras": cifar_keras.__version__, **{name: _version(name) for name in PACKAGES}}


def instruction_sets() -> list[str]:
    """Return which of `INSTRUCTION_SETS` the processor has; an empty list where the system does not tell."""
    cpu = _cpu_description()
    features = f"{cpu.get('flags', '')} {cpu.get('Features', '')}".split()  # x86 and ARM
    return [name for name in INSTRUCTION_SETS if name in features]


def source_commit(package: Path = Path(cifar_keras.__file__).parent) -> str:
    """Return the git commit of the checkout that `package` runs from.

    Args:
        package: the package's folder. In a checkout it lies next to a pyproject.toml at the top, and git tracks both.

    Returns:
        The full hash. "+changes" follows if the working tree differs from the commit, or holds files that are neither tracked nor
        ignored. The result is "" if the package was installed, or if git is missing or does not trust the folder. It is also "" if
        the folder lies in a repository that is not its own, such as a virtual environment inside some project.
    """
    root = package.resolve().parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root:
        return ""
    if not _git(root, "ls-files", "--error-unmatch", "--", "pyproject.toml", f"{package.name}/__init__.py"):
        return ""
    commit, changes = _git(root, "rev-parse", "--verify", "HEAD"), _git(root, "status", "--porcelain")
    return f"{commit}+changes" if commit and changes else commit or ""


def _git(folder: Path, *arguments: str) -> str | None:
    # A git hook sets GIT_DIR and similar variables, which would point to the hook's repository. No locks are taken, because somebody
    # may be committing at the same time.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=GIT_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_description() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty on systems without it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_gib() -> float:
    """Return the peak of the resident memory in GiB.

    On Linux `getrusage` is not used, because it includes the memory of the process that this one was forked from.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return kilobytes / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
