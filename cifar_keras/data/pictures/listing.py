"""List the pictures of a folder or of a CSV file, with their classes and splits. No picture is opened."""

import csv
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from cifar_keras.data.decoding import FILE_BYTES_LIMIT, SUFFIXES
from cifar_keras.data.types import Skipped
from cifar_keras.errors import UserError
from cifar_keras.files import paths

# The names of splits, as people spell them.
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
FILE_COLUMNS = ("file_name", "image_path")
COLUMNS = (*FILE_COLUMNS, "label", "split")

Item_co = TypeVar("Item_co", covariant=True)


class Picture(NamedTuple):
    """A picture file of a data set."""

    name: str  # its path in the data set, as text on one line
    label: str  # name of its class
    split: str  # train, validation or test; "" if the data set is not divided
    read: Callable[[], bytes]  # returns the content of the file


class SizedIterable(Protocol[Item_co]):
    """Items that are counted, and can be iterated over again and again."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Item_co]: ...


class Listing(NamedTuple):
    """The pictures of a data set."""

    pictures: SizedIterable[Picture]
    skipped: list[Skipped]  # files that cannot be pictures of the set
    fingerprint: str  # another one if a file is added, removed, renamed or written, or a label or split changes
    class_order: tuple[str, ...] = ()  # the names of classes as the set orders them; (): by name
    labels: frozenset[str] = frozenset()  # of all files, also of those that are left out


def list_folder(place: str) -> Listing:
    """List `DIR/CLASS/*`, or `DIR/{train,val,validation,test}/CLASS/*`. Hidden files and folders are left out.

    Args:
        place: the folder, as the user named it.

    Raises:
        UserError: there is no such folder, it has no class folders, classes are nested, or a name occurs as class and as split.
    """
    root, received = paths.expand("dataset", place), f"Received: folder:{place}"
    folders, outside = _inside(root, received)
    if not folders:
        raise UserError(
            f"--dataset=folder:DIR has to name a folder with a folder of pictures for each class. {received}"
        )
    divided = [folder for folder in folders if folder.name.lower() in SPLITS]
    if divided and len(divided) < len(folders):
        other = next(folder for folder in folders if folder not in divided)
        raise UserError(
            f"--dataset=folder:DIR has folders of splits ({', '.join(folder.name for folder in divided)}) beside others "
            f"({paths.shown(other.name)}); it has to have the one kind or the other. {received}"
        )
    listed: list[tuple[Path, str, str]] = []
    empty: list[Skipped] = []
    for folder in folders:
        split, class_folders = "", [folder]
        if divided:
            split = SPLITS[folder.name.lower()]
            class_folders, beside = _inside(folder, received)
            outside += beside
        for class_folder in class_folders:
            nested, files = _inside(class_folder, received)
            if nested:
                raise UserError(
                    f"--dataset=folder:DIR has folders inside the class {paths.shown(class_folder.name)} "
                    f"({paths.shown(nested[0].name)}); pictures have to lie in the folder of their class itself. {received}"
                )
            listed += [(file, class_folder.name, split) for file in files]
            if not files:
                empty.append(Skipped(_name(class_folder, root), "the folder of the class has no files"))
    misplaced = [Skipped(_name(file, root), "it lies in no folder of a class") for file in outside]
    return _listing(root, listed, [*misplaced, *empty])


def list_table(place: str) -> Listing:
    """List the rows of a CSV file with the columns `file_name` (or `image_path`), `label` and, if it is divided, `split`.

    Paths are relative to the folder of the CSV file, and have to stay inside it.

    Args:
        place: the CSV file, as the user named it.

    Raises:
        UserError: there is no such file, it is no UTF-8 text, or its columns are others.
    """
    table, received = paths.expand("dataset", place), f"Received: csv:{place}"
    root = table.parent.absolute()
    listed: list[tuple[Path, str, str]] = []
    skipped: list[Skipped] = []
    for line, row in _rows_of(table, received):
        file = root / _from(root, row["file"])
        if reason := _reason_against(row, file, root):
            skipped.append(Skipped(paths.shown(row["file"]) or f"line {line}", f"line {line}: {reason}"))
        else:
            listed.append((file, row["label"], SPLITS.get(row["split"].lower(), "")))
    if len({split == "" for _, _, split in listed}) > 1:
        raise UserError(
            f"--dataset=csv:FILE has rows with and without a split; all or none have to have one. {received}"
        )
    return _listing(root, listed, skipped)


def _rows_of(table: Path, received: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each row's last line, and its values `file`, `label` and `split`."""
    try:
        # `utf-8-sig`: spreadsheets begin their files with a byte order mark.
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = _columns_of(next(reader, []), received)
            for row in reader:
                if row:
                    values = {name: row[at].strip() if at < len(row) else "" for name, at in columns.items()}
                    yield reader.line_num, {"split": "", **values}
    except OSError as error:
        raise UserError(f"--dataset=csv:FILE cannot be read: {error.strerror}. {received}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--dataset=csv:FILE is not a CSV file of UTF-8 text: {error}. {received}") from error


def _columns_of(header: Sequence[str], received: str) -> dict[str, int]:
    """Return the places of the columns `file`, `label` and, if there is one, `split`."""
    names = [name.strip().lower() for name in header]
    known = [name for name in names if name in COLUMNS]
    files = [name for name in known if name in FILE_COLUMNS]
    if len(files) != 1 or known.count("label") != 1 or known.count("split") > 1:
        raise UserError(
            f"--dataset=csv:FILE has to have one column {' or '.join(FILE_COLUMNS)}, one column label, and at most one column split; its "
            f"columns are {', '.join(map(paths.shown, header)) or 'none'}. {received}"
        )
    return {"file" if name in FILE_COLUMNS else name: names.index(name) for name in known}


def _from(root: Path, path: str) -> str:
    """Return a path of a row as it leads from the folder of the CSV file, without `.` and `..` where it stays inside."""
    # `root` itself may be `../data`, which an absolute path in a row does not repeat.
    return os.path.relpath(os.path.normpath(root / path), os.path.normpath(root))


def _reason_against(row: dict[str, str], file: Path, root: Path) -> str:
    """Return why a row of a CSV file cannot be used, or ""."""
    if not row["file"] or not row["label"]:
        return f"its {'label' if row['file'] else 'file name'} is empty"
    if row["split"] and row["split"].lower() not in SPLITS:
        return f"its split is none of {', '.join(SPLITS)}: {paths.shown(row['split'])}"
    # Links are the user's own; only the path itself has to stay inside.
    if file.relative_to(root).parts[:1] == ("..",):
        return "it lies outside the folder of the CSV file"
    try:
        file.stat()
    # A name with a NUL character is a ValueError.
    except (FileNotFoundError, ValueError):
        return "there is no such file"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return ""


def _listing(root: Path, listed: Sequence[tuple[Path, str, str]], skipped: Iterable[Skipped]) -> Listing:
    """Return the listing of files with their classes and splits. Files that cannot be pictures are among the skipped ones."""
    pictures: list[Picture] = []
    left_out = list(skipped)
    known = hashlib.sha256()
    for file, label, split in listed:
        name = _name(file, root)
        try:
            stat = file.stat()
        except OSError as error:
            left_out.append(Skipped(name, f"it cannot be read: {error.strerror}"))
            continue
        # Programs that copy files often set the time of the last write, but nobody sets that of the last change.
        times = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known.update(repr((os.fsencode(file.relative_to(root)), label, split, times)).encode())
        if reason := _reason_against_file(file):
            left_out.append(Skipped(name, reason))
        else:
            pictures.append(Picture(name, paths.shown(label), split, functools.partial(_beginning_of, file)))
    known.update(repr(sorted(left_out)).encode())
    labels = frozenset(paths.shown(label) for _, label, _ in listed)
    return Listing(pictures, left_out, known.hexdigest(), labels=labels)


def _beginning_of(file: Path) -> bytes:
    """Return the content of a file, or a part of it that is larger than a picture may be."""
    with file.open("rb") as opened:
        return opened.read(FILE_BYTES_LIMIT + 1)


def _reason_against_file(file: Path) -> str:
    if not file.is_file():
        return "it is not a file"
    return "" if file.suffix.lower() in SUFFIXES else f"its name does not end with {', '.join(SUFFIXES)}"


def _inside(folder: Path, received: str) -> tuple[list[Path], list[Path]]:
    """Return the folders inside a folder, and everything else, each sorted by name. Hidden ones are left out.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        found = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
        folders = [each for each in found if each.is_dir()]
    except OSError as error:
        raise UserError(
            f"--dataset=folder:DIR cannot be read: {paths.shown(folder)}: {error.strerror}. {received}"
        ) from error
    return folders, [each for each in found if each not in set(folders)]


def _name(file: Path, root: Path) -> str:
    return paths.shown(file.relative_to(root))
