"""Find the picture files that a user names: files, folders and patterns. No picture is opened."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cifar_keras.data.decoding import SUFFIXES
from cifar_keras.errors import UserError
from cifar_keras.files import paths


class PictureFile(NamedTuple):
    """A file that a user named, or that lies in a folder that a user named."""

    path: Path
    root: Path | None = None  # the folder; None if the user named the file itself

    @property
    def class_folder(self) -> str:
        """Name of the folder inside `root` that the file lies in, which may be its class. "" if there is none."""
        return "" if self.root in (None, self.path.parent) else self.path.parent.name


def expand_patterns(names: Iterable[str]) -> list[Path]:
    """Return the paths that names stand for. A pattern (`*`, `?`, `[...]`, `**`) is expanded as a shell does, in the order of the names.

    A file whose own name looks like a pattern is that file.

    Raises:
        UserError: a pattern matches nothing.
    """
    expanded: list[Path] = []
    for name in names:
        if glob.has_magic(name) and not os.path.lexists(name):
            # Unlike `Path.glob` it leaves out hidden files, as a shell does.
            matches = list(map(Path, sorted(glob.iglob(name, recursive=True))))  # noqa: PTH207
            if not matches:
                raise UserError(f"the pattern of image files matches nothing. Received: {paths.shown(name)}")
            expanded += _outermost(matches)
        else:
            expanded.append(Path(name))
    return expanded


def _outermost(matches: Iterable[Path]) -> Iterator[Path]:
    """Yield each path once, without those in a folder that is yielded too: `photos/**` matches `photos` and all that is in it."""
    unique = dict.fromkeys(matches)
    folders = {path for path in unique if paths.is_folder(path)}
    return (path for path in unique if folders.isdisjoint(path.parents))


def picture_files(named: Sequence[Path]) -> Iterator[PictureFile]:
    """Yield the files that are named, whatever they are called, and the picture files in the folders that are named.

    Raises:
        UserError: a folder cannot be read, or there is no picture in it.
    """
    for path in named:
        if not paths.is_folder(path):
            yield PictureFile(path)
            continue
        empty = True
        for file in files_in(path):
            yield PictureFile(file, path)
            empty = False
        if empty:
            raise UserError(
                f"the folder has no image files, whose names end with {', '.join(SUFFIXES)}. Received: {paths.shown(path)}"
            )


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the picture files in a folder and in the folders inside it, by their suffixes, in the order of their names.

    The order is the same on every file system. Hidden files and folders are left out, and so are pipes and devices. Links are
    followed, but not back to a folder that the link lies in.

    Raises:
        UserError: a folder cannot be read.
    """
    return _files_in(folder, ())


def find_unknown(folder: str) -> list[Path]:
    """Return the picture files in the folder of `--unknown=folder:DIR` and in the folders inside it; none for "".

    Raises:
        UserError: there is no such folder, it cannot be read, or there is no picture in it.
    """
    if not folder:
        return []
    root = paths.expand("unknown", folder)
    if not root.is_dir():
        raise UserError(f"--unknown has to name a folder with pictures. Received: folder:{folder}")
    return [file.path for file in picture_files([root])]


def _files_in(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    above = (*above, os.path.realpath(folder))
    try:
        entries = sorted((path for path in folder.iterdir() if path.name[0] != "."), key=lambda path: path.name)
    except OSError as error:
        raise UserError(
            f"the folder of image files cannot be read: {error.strerror}. Received: {paths.shown(folder)}"
        ) from error
    for path in entries:
        if paths.is_folder(path):
            if os.path.realpath(path) not in above:
                yield from _files_in(path, above)
        # A link that leads nowhere, or to itself, is a file that cannot be read, and is reported as one.
        elif path.suffix.lower() in SUFFIXES and (path.is_symlink() or paths.is_file(path)):
            yield path
