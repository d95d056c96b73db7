"""Listings of folders and CSV files: which pictures there are, and what is said of all other files."""

import csv
import os
import socket
from pathlib import Path

import pytest
from picture_files import encoded, noise, write, write_classes

from cifar_keras.data.decoding import FILE_BYTES_LIMIT
from cifar_keras.data.pictures.listing import Listing, list_folder, list_table
from cifar_keras.data.types import Skipped
from cifar_keras.errors import UserError
from cifar_keras.files.workdir import describe_dataset

PNG = encoded(noise(0))


def rows_of(listing: Listing) -> list[tuple[str, str, str]]:
    return [(picture.name, picture.label, picture.split) for picture in listing.pictures]


def test_a_folder_of_classes(tmp_path: Path) -> None:
    write(tmp_path, {"dog/b.PNG": PNG, "dog/a.jpeg": PNG, "cat/c.webp": PNG, ".git/x/a.png": PNG, "cat/.hidden": b""})
    listing = list_folder(str(tmp_path))
    assert rows_of(listing) == [("cat/c.webp", "cat", ""), ("dog/a.jpeg", "dog", ""), ("dog/b.PNG", "dog", "")]
    assert listing.skipped == []
    assert len(listing.pictures) == 3
    assert [picture.read() for picture in listing.pictures] == [PNG] * 3


@pytest.mark.parametrize("spelled", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_a_folder_of_splits(spelled: str, tmp_path: Path) -> None:
    write(tmp_path, {"train/cat/a.png": PNG, f"{spelled}/cat/a.png": PNG, "Test/dog/a.png": PNG})
    assert set(rows_of(list_folder(str(tmp_path)))) == {
        ("Test/dog/a.png", "dog", "test"),
        ("train/cat/a.png", "cat", "train"),
        (f"{spelled}/cat/a.png", "cat", "validation"),
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "a folder of pictures for each class"),
        (["a.png"], "a folder of pictures for each class"),
        (["cat/a.png", "cat/small/b.png", "dog/a.png"], r"folders inside the class cat \(small\)"),
        (["train/cat/a.png", "train/cat/small/b.png"], r"folders inside the class cat \(small\)"),
        (["train/cat/a.png", "dog/a.png"], r"folders of splits \(train\) beside others \(dog\)"),
    ],
)
def test_folders_that_are_refused(files: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(files, PNG))
    with pytest.raises(UserError, match=rf"^--dataset=folder:DIR .*{message}.* Received: folder:{tmp_path}$"):
        list_folder(str(tmp_path))


def test_a_folder_that_is_not_there_or_is_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"file": b""})
    for name, reason in (("gone", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(UserError, match=rf"cannot be read: {tmp_path}/{name}: {reason}. Received: folder:"):
            list_folder(str(tmp_path / name))


def test_every_file_that_can_be_no_picture_is_named(tmp_path: Path) -> None:
    """Without opening one: a pipe would wait for ever, and a link may lead in a circle."""
    write(tmp_path, {"train/cat/a.png": PNG, "train/cat/notes.txt": b"", "readme.txt": b"", "train/lost.png": PNG})
    os.mkfifo(tmp_path / "train/cat/pipe.png")
    (tmp_path / "train/cat/circle.png").symlink_to("circle.png")
    (tmp_path / "train/cat/gone.png").symlink_to("nowhere.png")
    (tmp_path / "train/cat/linked.png").symlink_to("a.png")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(tmp_path / "train/cat", os.O_RDONLY)  # whose own path is too long for a socket
        listener.bind(f"/proc/self/fd/{here}/socket.png")
        os.close(here)
        listing = list_folder(str(tmp_path))
    assert [name for name, _, _ in rows_of(listing)] == ["train/cat/a.png", "train/cat/linked.png"]
    assert sorted(listing.skipped) == [
        ("readme.txt", "it lies in no folder of a class"),
        ("train/cat/circle.png", "it cannot be read: Too many levels of symbolic links"),
        ("train/cat/gone.png", "it cannot be read: No such file or directory"),
        ("train/cat/notes.txt", "its name does not end with .jpg, .jpeg, .png, .bmp, .gif, .webp"),
        ("train/cat/pipe.png", "it is not a file"),
        ("train/cat/socket.png", "it is not a file"),
        ("train/lost.png", "it lies in no folder of a class"),
    ]


def test_a_class_folder_that_links_to_its_parent_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "cat" / "loop").symlink_to("..")
    with pytest.raises(UserError, match=r"folders inside the class cat \(loop\)"):
        list_folder(str(tmp_path))


def test_of_a_file_that_is_too_large_only_the_beginning_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"cat/a.png": b""})
    os.truncate(tmp_path / "cat" / "a.png", 2**40)
    (picture,) = list_folder(str(tmp_path)).pictures
    assert len(picture.read()) == FILE_BYTES_LIMIT + 1


NAMES = [
    "plain",
    "with, comma",
    'with "quotes"',
    "two\nlines",
    "carriage\rreturn",
    "日本語",
    "tab\t",
    "back\\slash",
    " space ",
]


def test_any_name_comes_back_from_the_list_of_skipped_files(tmp_path: Path) -> None:
    """Also bytes that are no text: as escapes, because a CSV file is text."""
    folder = tmp_path / "set"
    for name in NAMES:
        write(folder, {f"cat/{name}.txt": b""})
    Path(os.fsdecode(os.fsencode(folder) + b"/cat/not\xffutf8.txt")).write_bytes(b"")
    skipped = list_folder(str(folder)).skipped
    shown = [name.encode("unicode_escape").decode() if not name.isprintable() else name for name in NAMES]
    assert {each.path for each in skipped} == {f"cat/{name}.txt" for name in [*shown, "not\\xffutf8"]}
    describe_dataset(tmp_path, "digest", [], skipped)
    with (tmp_path / "skipped_images.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "reason"]
    assert [Skipped(*row) for row in rows] == skipped
    assert len((tmp_path / "skipped_images.csv").read_text().splitlines()) == 1 + len(skipped)


def test_the_fingerprint_tells_every_change_and_no_move(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set", {"cat": 2, "dog": 2})
    seen = [list_folder(str(folder)).fingerprint]

    def changed() -> bool:
        seen.append(list_folder(str(folder)).fingerprint)
        return len(set(seen)) == len(seen)

    assert list_folder(str(folder)).fingerprint == seen[0]
    folder.rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    assert list_folder(str(folder)).fingerprint == seen[0]
    file = folder / "cat" / "0000.png"
    times = file.stat()
    file.write_bytes(bytes(reversed(file.read_bytes())))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp --preserve` would
    assert changed()
    file.rename(folder / "dog" / "0002.png")
    assert changed()
    (folder / "dog" / "0002.png").rename(folder / "dog" / "0003.png")
    assert changed()
    write(folder, {"dog/notes.txt": b""})
    assert changed()
    (folder / "dog" / "0001.png").unlink()
    assert changed()


def table(folder: Path, text: str | bytes, name: str = "set.csv") -> str:
    write(folder, {name: text.encode() if isinstance(text, str) else text})
    return str(folder / name)


@pytest.mark.parametrize("column", ["file_name", "image_path", " File_Name "])
def test_a_table(column: str, tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG, "sub/b,c.png": PNG})
    text = f'\ufefflabel,{column},note\r\ncat,a.png,x\r\n\r\n"dog, large","sub/b,c.png"\r\n'
    listing = list_table(table(tmp_path, text))
    assert rows_of(listing) == [("a.png", "cat", ""), ("sub/b,c.png", "dog, large", "")]
    assert listing.skipped == []


def test_a_table_with_splits(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG, "b.png": PNG, "c.png": PNG})
    text = "file_name,label,split\na.png,cat,train\nb.png,cat,Val\nc.png,cat,test\n"
    assert [split for _, _, split in rows_of(list_table(table(tmp_path, text)))] == ["train", "validation", "test"]


def test_paths_are_relative_to_the_table_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "set", {"a.png": PNG, "sub/b.png": PNG, "c.png": PNG})
    table(folder, f"file_name,label\na.png,cat\nsub/../sub/./b.png,cat\n{folder}/sub/../c.png,dog\n../set/a.png,cat\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("set")
    monkeypatch.chdir(tmp_path / "elsewhere")
    wanted = [("a.png", "cat", ""), ("sub/b.png", "cat", ""), ("c.png", "dog", ""), ("a.png", "cat", "")]
    for place in (f"{folder}/set.csv", "../set/set.csv", f"{tmp_path}/elsewhere/.././set/set.csv"):
        listing = list_table(place)
        assert rows_of(listing) == wanted
        assert listing.skipped == []
        assert all(picture.read() == PNG for picture in listing.pictures)
    # By another name of the folder, an absolute path leads elsewhere.
    assert len(list_table("../link/set.csv").pictures) == 2


def test_every_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"a.png": PNG, "notes.txt": b"", "sub/b.png": PNG, "file": b""})
    write(tmp_path, {"outside.png": PNG})
    (folder / "circle.png").symlink_to("circle.png")
    long = "x" * 300 + ".png"
    rows = [
        *("a.png,cat", "gone.png,cat", "../outside.png,cat", f"{tmp_path}/outside.png,cat", ",cat", "a.png,", "a.png"),
        *(
            "notes.txt,cat",
            "sub,cat",
            "circle.png,cat",
            f"{long},cat",
            "file/x.png,cat",
            '"two\nlines.png",cat',
            "~,cat",
        ),
    ]
    listing = list_table(table(folder, "file_name,label\n" + "\n".join(rows) + "\n"))
    assert rows_of(listing) == [("a.png", "cat", "")]
    assert sorted(listing.skipped) == sorted(
        [
            ("gone.png", "line 3: there is no such file"),
            ("../outside.png", "line 4: it lies outside the folder of the CSV file"),
            (f"{tmp_path}/outside.png", "line 5: it lies outside the folder of the CSV file"),
            ("line 6", "line 6: its file name is empty"),
            ("a.png", "line 7: its label is empty"),
            ("a.png", "line 8: its label is empty"),
            ("notes.txt", "its name does not end with .jpg, .jpeg, .png, .bmp, .gif, .webp"),
            ("sub", "it is not a file"),
            ("circle.png", "line 11: it cannot be read: Too many levels of symbolic links"),
            (long, "line 12: it cannot be read: File name too long"),
            ("file/x.png", "line 13: it cannot be read: Not a directory"),
            ("two\\nlines.png", "line 15: there is no such file"),
            ("~", "line 16: there is no such file"),
        ]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its columns are none"),
        ("name,class\na.png,cat\n", "its columns are name, class"),
        ("file_name,label,label\na.png,cat,dog\n", "its columns are file_name, label, label"),
        ("file_name,file_name,label\na.png,b.png,cat\n", "one column file_name or image_path"),
        ("file_name,image_path,label\na.png,b.png,cat\n", "one column file_name or image_path"),
        ("file_name,label,split,Split\na.png,cat,train,test\n", "at most one column split"),
        ("file_name,label,split\na.png,cat,train\nb.png,cat,\n", "rows with and without a split"),
        (b"file_name,label\na.png,caf\xe9\n", "is not a CSV file of UTF-8 text"),
        ('file_name,label\n"a.png,cat\n', "is not a CSV file of UTF-8 text: unexpected end of data"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "is not a CSV file of UTF-8 text"),
    ],
)
def test_tables_that_are_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG, "b.png": PNG})
    place = table(tmp_path, text)
    with pytest.raises(UserError, match=rf"^--dataset=csv:FILE .*{message}.* Received: csv:{place}$"):
        list_table(place)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    for place, reason in ((tmp_path / "gone.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"^--dataset=csv:FILE cannot be read: {reason}.* Received: csv:{place}$"):
            list_table(str(place))


def test_an_unknown_split_is_a_row_that_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG, "b.png": PNG})
    listing = list_table(table(tmp_path, "file_name,label,split\na.png,cat,train\nb.png,cat,holdout\n"))
    assert listing.skipped == [
        ("b.png", "line 3: its split is none of train, val, valid, validation, test: holdout"),
    ]


def test_the_fingerprint_of_a_table_tells_its_labels(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG, "b.png": PNG})
    prints = {
        list_table(table(tmp_path, f"file_name,label,split\na.png,{label},{split}\nb.png,dog,train\n")).fingerprint
        for label in ("cat", "dog")
        for split in ("train", "test")
    }
    assert len(prints) == 4
