"""The picture files that names, folders and patterns stand for."""

import os
from pathlib import Path

import pytest

from cifar_keras.data.pictures.finding import PictureFile, expand_patterns, files_in, picture_files
from cifar_keras.errors import UserError


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_a_folder_has_the_picture_files_in_it_and_below_in_order(tmp_path: Path) -> None:
    wanted = [tmp_path / name for name in ("B.JPG", "a.png", "b/1.webp", "b/c/2.gif", "b/d.jpeg", "c.bmp")]
    touch(*reversed(wanted))
    touch(*(tmp_path / name for name in (".hidden.png", ".cache/a.png", "notes.txt", "png", "b/d.tif")))
    (tmp_path / "empty.png").mkdir()
    assert list(files_in(tmp_path)) == wanted


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "a.png", tmp_path / "photos" / "b.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "photos" / "pipe.png")
    found = [file.relative_to(tmp_path / "photos").as_posix() for file in files_in(tmp_path / "photos")]
    assert found == ["b.png", "link/a.png", "nowhere.png"]


def test_patterns_are_expanded_as_a_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(*map(Path, ("b.png", "a.png", "a[1].png", ".c.png", "d/e.png", "d/f/g.png")))
    assert expand_patterns(["*.png", "z.png"]) == [*map(Path, ("a.png", "a[1].png", "b.png")), Path("z.png")]
    assert expand_patterns(["d/**/*.png"]) == [Path("d/e.png"), Path("d/f/g.png")]
    # A file that is really called so.
    assert expand_patterns(["a[1].png", "a[[]1].png"]) == [Path("a[1].png")] * 2
    with pytest.raises(UserError, match=r"^the pattern of image files matches nothing\. Received: \*\.jpg$"):
        expand_patterns(["*.jpg"])


def test_the_class_folder_is_the_folder_inside_the_one_that_was_named(tmp_path: Path) -> None:
    touch(tmp_path / "cat" / "a.png", tmp_path / "b.png")
    assert [file.class_folder for file in picture_files([tmp_path])] == ["", "cat"]
    assert list(picture_files([tmp_path / "cat"])) == [PictureFile(tmp_path / "cat" / "a.png", tmp_path / "cat")]
    assert [file.class_folder for file in picture_files([tmp_path / "cat", tmp_path / "cat" / "a.png"])] == ["", ""]


def test_a_folder_without_pictures_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=rf"^the folder has no image files, .*\.webp\. Received: {tmp_path}$"):
        list(picture_files([tmp_path]))
    with pytest.raises(UserError, match=r"^the folder of image files cannot be read: No such file .* Received: "):
        list(files_in(tmp_path / "gone"))
