"""The folder of a run: what may be in it, and who may write there."""

import contextlib
import csv
import errno
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from cifar_keras.config import FREE_WHEN_RESUMED, Resume, RunConfig, to_values, with_later_settings
from cifar_keras.errors import InterruptedRunError, UserError, unwritable
from cifar_keras.files import writing
from cifar_keras.files.paths import CONFIG, DATASET, LOCK, SKIPPED_IMAGES, expand_model, kept_if_filled

# A soft lock whose process is gone can be taken over once it is two seconds old. We wait a little longer.
SOFT_LOCK_SECONDS = 3
# Errors of file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def holds_run(path: Path) -> bool:
    """Return whether a run has begun in a folder."""
    return (path / CONFIG).is_file()


def check_workdir(workdir: str, resume: Resume) -> Path:
    """Return the path of a workdir in which a run may begin or be resumed. Nothing is created yet.

    Raises:
        UserError: the workdir is not a folder, or cannot be created, read or written; it is not empty, and holds no run that is to
            be resumed; or `resume` asks for a run and there is none.
    """
    path = expand_model("workdir", workdir)
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--workdir cannot be made or written: {nearest} is no writable folder. Received: {workdir}")
    if path.exists() and not os.access(path, os.R_OK):
        raise UserError(f"--workdir cannot be read. Received: {workdir}")
    begun = path.exists() and holds_run(path)
    if resume is Resume.YES and not begun:
        raise UserError(f"--resume needs a run that has begun in --workdir. Received: {workdir}")
    if (
        path.exists()
        and any(entry.name != LOCK for entry in path.iterdir())
        and not (begun and resume is not Resume.NO)
    ):
        way_out = "; --resume goes on with the one that is there" if begun else ""
        raise UserError(
            f"--workdir has to be new or empty, so that no earlier run is lost{way_out}. Received: {workdir}"
        )
    return path


def check_same_settings(config: RunConfig, path: Path) -> None:
    """Check that a run is resumed with the settings that it began with. Settings that do not change its result may differ.

    Args:
        config: of the run that is to be resumed.
        path: its workdir.

    Raises:
        UserError: other settings differ; the message names them.
    """
    began, now = with_later_settings(writing.read_json(path / CONFIG)), to_values(config)
    differ = [
        f"--{flag}={now.get(flag)} (was {began.get(flag)})"
        for flag in sorted(began.keys() | now.keys())
        if flag not in FREE_WHEN_RESUMED and began.get(flag) != now.get(flag)
    ]
    if differ:
        raise UserError(
            f"--resume goes on with the settings that the run began with; others are: {', '.join(differ)}. Received: {path}"
        )


def check_same_images(path: Path, digest: str) -> None:
    """Check that a run goes on with the images that it began with. A run that kept no digest of them is not checked.

    Args:
        path: its workdir.
        digest: of the images and labels that were loaded now.

    Raises:
        UserError: they are others.
    """
    kept = path / DATASET
    if kept.is_file() and writing.read_json(kept).get("digest") != digest:
        raise UserError(
            f"the images or labels of the data set are others than when the run began, or lie in other splits. Received: {path}"
        )


def describe_dataset(
    path: Path, digest: str, images: Sequence[tuple[str, int]], skipped: Sequence[tuple[str, str]]
) -> None:
    """Write what a run learns from into its workdir: `dataset.json`, and `skipped_images.csv` if files are left out.

    A run that goes on is checked first, as in `check_same_images`.

    Args:
        path: the workdir.
        digest: of the images and labels.
        images: the name of each split, and the number of its images.
        skipped: the path of each file that is left out, and the reason.

    Raises:
        UserError: as in `check_same_images`.
    """
    check_same_images(path, digest)
    if skipped:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *skipped])
        writing.write_whole(path / SKIPPED_IMAGES, text.getvalue().encode())
    writing.write_json(path / DATASET, {"digest": digest, "images": dict(images), "skipped": len(skipped)})


@contextlib.contextmanager
def claimed(path: Path, flag: str = "--workdir", *, way_out: str = "") -> Iterator[None]:
    """Create the folder of a run, and keep other processes out of it during the block.

    After the block, the folder is removed if nothing was put into it. When a process dies, the system releases its lock.

    Args:
        path: of the folder.
        flag: the flag that names the folder, for the messages.
        way_out: what the user can do if the folder can no longer be written, for the message.

    Raises:
        UserError: another process uses the folder, or the operating system refuses to create it or to write into it, at the start
            or inside the block.
    """
    with kept_if_filled(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path / LOCK)
        except filelock.Timeout as error:
            raise UserError(f"{flag} is in use by another process. Received: {path}") from error
        except OSError as error:
            raise UserError(f"{flag} cannot be made or written: {error.strerror}. Received: {path}") from error
        try:
            yield
        except Exception as error:
            reason, file = unwritable(error), getattr(error, "filename", None)
            known = isinstance(error, UserError | InterruptedRunError)
            if known or _is_elsewhere(file, path) or (reason is None and path.is_dir()):
                raise
            raise UserError(
                f"{flag} cannot be written any more: {reason or 'it is gone'}{way_out}. Received: {file or path}"
            ) from error
        finally:
            # By now the folder may be gone or read-only.
            with contextlib.suppress(OSError):
                (path / LOCK).unlink()
            lock.release()


def _locked(file: Path) -> filelock.BaseFileLock:
    """Return a lock that this process now holds.

    Raises:
        filelock.Timeout: another process holds it.
        OSError: the file cannot be created.
    """
    lock: filelock.BaseFileLock = filelock.FileLock(file, blocking=False)
    # A file that was there before may belong to another process.
    was_there = file.exists()
    try:
        with warnings.catch_warnings():
            # filelock warns that it takes another kind of lock if the file system does not have its own.
            warnings.simplefilter("ignore")
            lock.acquire()
    except OSError as error:
        if not was_there:
            file.unlink(missing_ok=True)
        if error.errno not in _NO_LOCKS:
            raise
        # A soft lock is a file that names its process. The system does not remove it when the process dies, but the next process
        # finds that its process is gone.
        lock = filelock.SoftFileLock(file, timeout=SOFT_LOCK_SECONDS)
        lock.acquire()
    return lock


def _is_elsewhere(file: str | None, folder: Path) -> bool:
    return file is not None and not Path(file).absolute().is_relative_to(folder.absolute())
