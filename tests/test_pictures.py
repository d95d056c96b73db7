"""Data sets of pictures: what is found out about the files, and how they become the splits of a run."""

import dataclasses
import hashlib
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import BROKEN, encoded, noise, picture_config, write, write_classes
from PIL import Image
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split

from cifar_keras.config import RunConfig, from_values
from cifar_keras.data import decoding
from cifar_keras.data.datasets import check_outside, load_dataset, load_published
from cifar_keras.data.splits import content_order
from cifar_keras.data.types import Dataset, LabelledImages, digests_of, origins_of
from cifar_keras.errors import UserError

SPLITS = ("train", "validation", "test")


def load(folder: Path, **flags: object) -> Dataset:
    return load_dataset(config_of(folder, **flags))


def config_of(folder: Path, **flags: object) -> RunConfig:
    return picture_config(f"folder:{folder}", folder.parent / "cache", **flags)


def arrays(dataset: Dataset) -> dict[str, NDArray[Any]]:
    return {
        f"{name}/{part}": getattr(dataset, name)[place][:]
        for name in SPLITS
        for place, part in enumerate(("images", "labels"))
    }


def assert_same(left: Dataset, right: Dataset) -> None:
    assert left.class_names == right.class_names
    assert left.contents.digest == right.contents.digest
    for name, values in arrays(left).items():
        np.testing.assert_array_equal(values, arrays(right)[name], err_msg=name)


def contents(split: LabelledImages) -> list[tuple[bytes, int]]:
    return [(bytes(digest), int(label)) for digest, label in zip(digests_of(split.images), split.labels, strict=True)]


def rename_at_random(folder: Path, seed: int = 0) -> None:
    """Give every file a new name, so that their order is another one."""
    chance = random.Random(seed)
    for file in sorted(folder.rglob("*.*")):
        file.rename(file.with_name(f"{chance.randrange(2**64):020d}{file.suffix}"))


def test_a_folder_of_classes_is_divided_by_scikit_learns_stratified_split(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set", {"dog": 40, "cat": 20})
    found = load(folder, test_share=0.25, validation_share=0.2, seed=7)
    assert found.class_names == ("cat", "dog")
    assert dict(found.contents.images) == {"train": 36, "validation": 9, "test": 15}
    # "dog" was written first, so its pictures are those of seeds 0 to 39.
    images, labels = np.array([noise(seed) for seed in range(60)]), np.repeat([1, 0], [40, 20])
    order = content_order(LabelledImages(images, labels))
    pool, test = train_test_split(order, test_size=15, stratify=labels[order], random_state=7)
    pool = np.sort(np.argsort(order)[pool])
    train, validation = train_test_split(order[pool], test_size=9, stratify=labels[order[pool]], random_state=7)
    for name, wanted in (("train", train), ("validation", validation), ("test", test)):
        split = getattr(found, name)
        assert sorted(contents(split)) == sorted(contents(LabelledImages(images[wanted], labels[wanted])))
        np.testing.assert_array_equal(content_order(split), np.arange(len(wanted)))


def test_a_folder_of_splits_keeps_them(tmp_path: Path) -> None:
    counts = {"train/cat": 3, "train/dog": 4, "val/cat": 1, "val/dog": 2, "test/cat": 2, "test/dog": 2}
    found = load(write_classes(tmp_path / "set", counts))
    assert dict(found.contents.images) == {"train": 7, "validation": 3, "test": 4}
    assert [np.bincount(getattr(found, name).labels).tolist() for name in SPLITS] == [[3, 4], [1, 2], [2, 2]]


def test_what_a_divided_folder_lacks_is_taken_from_train(tmp_path: Path) -> None:
    found = load(
        write_classes(tmp_path / "a" / "set", {"train/cat": 20, "train/dog": 20, "test/cat": 2, "test/dog": 3})
    )
    assert dict(found.contents.images) == {"train": 36, "validation": 4, "test": 5}
    found = load(write_classes(tmp_path / "b" / "set", {"train/cat": 20, "train/dog": 20, "val/cat": 2, "val/dog": 3}))
    assert dict(found.contents.images) == {"train": 32, "validation": 5, "test": 8}


@pytest.mark.parametrize("splits", [("",), ("train/", "val/", "test/")])
def test_names_and_order_of_files_change_nothing(splits: tuple[str, ...], tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set", {f"{split}{name}": 15 for split in splits for name in ("cat", "dog")})
    before = load(folder)
    rename_at_random(folder)
    assert_same(load(folder), before)


def test_a_csv_file_is_the_same_data_set_as_a_folder(tmp_path: Path) -> None:
    """In whatever order its rows are."""
    folder = write_classes(tmp_path / "set", {f"{split}/{name}": 5 for split in SPLITS for name in ("cat", "dog")})
    rows = [f"{file.relative_to(folder)},{file.parent.name},{file.parts[-3]}" for file in folder.rglob("*.png")]
    random.Random(0).shuffle(rows)
    write(folder, {"set.csv": "\n".join(["image_path,label,split", *rows]).encode()})
    table = load_dataset(picture_config(f"csv:{folder / 'set.csv'}", tmp_path / "cache"))
    (folder / "set.csv").unlink()
    assert_same(load(folder), table)


def test_the_formats_give_the_pixels_that_one_decoding_gives(tmp_path: Path) -> None:
    files = {
        f"{name}/{place}.{kind.lower()}": encoded(noise(place + 10 * (name == "dog"), 12, 12), kind)
        for name in ("cat", "dog")
        for place, kind in enumerate(decoding.FORMATS)
    }
    published = load_published(config_of(write(tmp_path / "set", files), test_share=0.4, validation_share=0.4))
    pixels = {decoding.decode(content).tobytes() for content in files.values()}
    found = [*published.train.images[:], *published.test.images[:]]
    assert {image.tobytes() for image in found} == pixels
    assert len(found) == len(pixels) == 10


def test_the_names_of_training_images_are_those_of_their_files(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set", {"cat": 10, "dog": 10})
    published = load_published(config_of(folder))
    for name, image, label in zip(published.names, published.train.images[:], published.train.labels, strict=True):
        np.testing.assert_array_equal(decoding.decode((folder / name).read_bytes()), image)
        assert Path(name).parent.name == published.class_names[label]


def test_copies_are_kept_once_unless_all_are_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal pixels in another format are the same picture."""
    folder = write_classes(tmp_path / "set", {"cat": 10, "dog": 10})
    once = load(folder)
    shutil.copy(folder / "cat" / "0000.png", folder / "cat" / "copy.png")
    write(folder, {"dog/copy.bmp": encoded(decoding.decode((folder / "dog" / "0003.png").read_bytes()), "BMP")})
    capsys.readouterr()
    assert_same(load(folder), once)
    assert capsys.readouterr().out == "pictures: 20 of 2 classes, 8 x 8 px; 2 copies left out\n"
    assert sum(dict(load(folder, allow_duplicates=True).contents.images).values()) == 22


def test_leaked_and_twice_labelled_pictures_are_named_and_can_be_allowed(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set", {f"{split}/{name}": 5 for split in SPLITS for name in ("cat", "dog")})
    shutil.copy(folder / "train/cat/0000.png", folder / "test/cat/leaked.png")
    shutil.copy(folder / "train/cat/0001.png", folder / "train/dog/both.png")
    with pytest.raises(UserError) as caught:
        load(folder)
    assert str(caught.value) == (
        "--dataset: 1 pictures lie in two splits (--allow_duplicates trains all the same): "
        "test/cat/leaked.png = train/cat/0000.png; "
        "1 pictures have two labels (--allow_duplicates trains all the same): train/cat/0001.png = train/dog/both.png. "
        f"Received: --dataset=folder:{folder}"
    )
    assert sum(dict(load(folder, allow_duplicates=True).contents.images).values()) == 32


def test_a_message_is_not_endless(tmp_path: Path) -> None:
    files = {f"{name}/{number}.png": encoded(noise(0)) for name in ("cat", "dog") for number in range(100)}
    files |= {f"cat/broken {number}.png": b"" for number in range(120)}
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / "set", files))
    message = str(caught.value)
    assert message.startswith("--dataset: 120 files cannot be used (--bad_images=skip leaves them out): ")
    assert message.count("broken") == 50
    assert "; and 70 more; 1 pictures have two labels" in message
    assert "cat/0.png = cat/1.png = cat/10.png = cat/11.png = cat/12.png and 195 more" in message


REFUSED: Mapping[str, tuple[dict[str, int], dict[str, object], str]] = {
    "one class": ({"cat": 9}, {}, "at least two classes; it has one class, cat"),
    "one class, divided": (
        {"train/cat": 3, "val/cat": 2, "test/cat": 2},
        {},
        "at least two classes; it has one class, cat",
    ),
    "a class with one image": ({"cat": 9, "dog": 1}, {}, r"at least 3 pictures of each class .* dog \(1\)"),
    "a class with two images": ({"cat": 9, "dog": 2}, {}, r"at least 3 pictures of each class .* dog \(2\)"),
    "a class that is not in train": (
        {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/dog": 2, "test/cat": 1, "test/emu": 2},
        {},
        r"at least 1 picture of each class .* emu \(0\)",
    ),
    "no train split": ({"val/cat": 3, "test/dog": 3}, {}, r"at least 1 picture of each class .* cat \(0\), dog \(0\)"),
    "too small a test share": (
        {"cat": 9, "dog": 9},
        {"test_share": 0.01},
        "at least one image of each of the 2 classes",
    ),
    "too small a validation share": (
        {"cat": 9, "dog": 9},
        {"validation_share": 0.01},
        "at least one image of each of the 2 classes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_sets_that_cannot_be_divided_are_refused(name: str, tmp_path: Path) -> None:
    counts, flags, message = REFUSED[name]
    with pytest.raises(UserError, match=rf"^--\w+ has to .*{message}.* Received: "):
        load(write_classes(tmp_path / "set", counts), **flags)


@pytest.mark.parametrize("content", [b"", b"broken"])
def test_a_set_without_any_picture(content: bytes, tmp_path: Path) -> None:
    write(tmp_path / "set", {"cat/a.png": content, "dog/b.png": content})
    with pytest.raises(UserError, match=r"at least two classes; it has no pictures. Received: "):
        load(tmp_path / "set", bad_images="skip")


def test_pictures_are_stored_in_the_size_that_is_wanted(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set", {"cat": 10, "dog": 10}, lambda seed: noise(seed, 40, 60))
    sizes: list[tuple[dict[str, object], tuple[int, int]]] = [
        ({}, (40, 60)),
        ({"stored_size": 24}, (24, 24)),
        ({"image_size": 48, "stored_size": 60}, (60, 60)),
    ]
    for flags, wanted in sizes:
        assert load(folder, **flags).train.images.shape[1:3] == wanted
    write(folder, {"cat/another.png": encoded(noise(50, 30, 30))})
    assert load(folder, image_size=36, finetune_image_sizes="36,40,48").train.images.shape[1:3] == (48, 48)


@pytest.mark.parametrize("one_size", [True, False])
def test_no_size_changes_which_pictures_are_in_which_split(one_size: bool, tmp_path: Path) -> None:
    """Otherwise a run at 64 px would be measured on pictures that its teacher of 96 px has learned from."""

    def picture(seed: int) -> NDArray[np.uint8]:
        return noise(seed, 40, 40 if one_size else 40 + seed % 3)

    folder = write_classes(tmp_path / "set", {"cat": 20, "dog": 20}, picture)
    wanted = {hashlib.sha256(picture(seed).tobytes()).digest() for seed in range(40)}
    sizes: list[dict[str, object]] = [{}, {"stored_size": 24}, {"image_size": 16}, {"stored_size": 60}]
    found = [load(folder, **flags) for flags in sizes]
    assert len({each.train.images.shape[1:3] for each in found}) > 2
    for name in SPLITS:
        digests = [list(map(bytes, origins_of(getattr(each, name).images))) for each in found]
        assert all(each == digests[0] for each in digests)
        assert set(digests[0]) <= wanted


def test_classes_that_are_too_small_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_classes(tmp_path / "set", {"cat": 20, "dog": 20, "emu": 1})
    with pytest.raises(UserError, match=r"at least 3 pictures of each class .* emu \(1\)"):
        load(folder)
    capsys.readouterr()
    found = load(folder, classes="cat,dog")
    assert found.class_names == ("cat", "dog")
    assert dict(found.contents.images) == {"train": 29, "validation": 3, "test": 8}
    assert capsys.readouterr().out.startswith("pictures: 40 of 2 classes, 8 x 8 px\n")
    with pytest.raises(UserError, match=r"^--classes has to name classes of the data set \(cat, dog, emu\)"):
        load(folder, classes="cat,fox")


def test_a_folder_of_a_class_without_files_is_named(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set", {"cat": 20, "dog": 20})
    (folder / "emu").mkdir()
    with pytest.raises(
        UserError, match=r"1 files cannot be used .*: emu: the folder of the class has no files\. Received"
    ):
        load(folder)
    assert load(folder, bad_images="skip").contents.skipped == (("emu", "the folder of the class has no files"),)


def test_a_class_that_is_skipped_as_a_whole_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_classes(tmp_path / "set", {"cat": 20, "dog": 20})
    write(folder, {"emu/a.png": b"broken", "emu/b.png": b""})
    assert load(folder, bad_images="skip").class_names == ("cat", "dog")
    assert capsys.readouterr().err == "warning: no picture can be used of emu: no classes of this run\n"


def test_seven_broken_three_leaked_and_two_twice_labelled_files_are_named_in_one_message(tmp_path: Path) -> None:
    """A small relative of the set of 2,000 in `test_picture_runs.py`."""
    folder = write_classes(tmp_path / "set", {f"{split}/{name}": 6 for split in SPLITS for name in ("cat", "dog")})
    wanted = spoil(folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    check_named(str(caught.value), wanted)
    with pytest.raises(UserError) as caught:
        load(folder, bad_images="skip")
    assert not any(name in str(caught.value) for name in wanted[:7])
    found = load(folder, bad_images="skip", allow_duplicates=True)
    assert [each.path for each in found.contents.skipped] == sorted(wanted[:7])


def spoil(folder: Path) -> list[str]:
    """Put seven broken files, three leaked and two twice labelled ones into a set of splits, and return their names."""
    broken = []
    for number, (kind, (ending, content, _)) in enumerate(BROKEN.items()):
        broken.append(f"{SPLITS[number % 3].replace('validation', folder_of_validation(folder))}/cat/{kind}{ending}")
        write(folder, {broken[-1]: content})
    copies = [
        ("train/cat/0000.png", f"{folder_of_validation(folder)}/cat/leaked 0.png"),
        ("train/dog/0001.png", "test/dog/leaked 1.png"),
        (f"{folder_of_validation(folder)}/dog/0002.png", "test/dog/leaked 2.png"),
        ("train/cat/0003.png", "train/dog/both 0.png"),
        ("test/dog/0004.png", "test/cat/both 1.png"),
    ]
    for source, copy in copies:
        shutil.copy(folder / source, folder / copy)
    return broken + [copy for _, copy in copies]


def folder_of_validation(folder: Path) -> str:
    return "val" if (folder / "val").is_dir() else "validation"


def check_named(message: str, wanted: list[str]) -> None:
    """All of them, the reasons, and that it is one line."""
    assert len(message.splitlines()) == 1
    assert "7 files cannot be used" in message
    assert "3 pictures lie in two splits" in message
    assert "2 pictures have two labels" in message
    assert [name for name in wanted if name not in message] == []
    for _, _, reason in BROKEN.values():
        assert reason in message


def test_the_digits_of_scikit_learn(tmp_path: Path) -> None:
    """1,797 handwritten digits, 8 x 8 px (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998)."""
    digits = sklearn_datasets.load_digits()
    pixels = np.repeat((digits.images * 15).astype(np.uint8)[..., None], 3, axis=3)
    folder = tmp_path / "set"
    for place, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        write(folder, {f"{label}/{place}.png": encoded(image)})
    found = load(folder)
    assert found.class_names == tuple("0123456789")
    assert dict(found.contents.images) == {"train": 1294, "validation": 144, "test": 359}
    whole = sorted(entry for name in SPLITS for entry in contents(getattr(found, name)))
    assert whole == sorted(contents(LabelledImages(pixels, digits.target)))


def test_the_photographs_of_scikit_learn(tmp_path: Path) -> None:
    """`china.jpg` and `flower.jpg`, 640 x 427 px, of `sklearn.datasets.load_sample_images`. Parts of them are the pictures here."""
    photographs = sklearn_datasets.load_sample_images()
    folder = tmp_path / "set"
    for name, image in zip(photographs.filenames, photographs.images, strict=True):
        for place in range(6):
            part = image[60 * place : 60 * place + 120, 90 * place : 90 * place + 160]
            write(folder, {f"{Path(name).stem}/{place}.jpg": encoded(part, "JPEG")})
    found = load(folder, image_size=64, stored_size=64, test_share=0.34, validation_share=0.25)
    assert found.class_names == ("china", "flower")
    assert dict(found.contents.images) == {"train": 6, "validation": 2, "test": 4}
    # As the whole pictures show them: the roof is redder than the leaves, which are greener.
    means = {
        name: found.train.images[found.train.labels == index].mean(axis=(0, 1, 2))
        for index, name in enumerate(found.class_names)
    }
    assert means["china"][2] > means["flower"][2]
    for file in folder.rglob("*.jpg"):
        with Image.open(file) as opened:
            assert opened.size == (160, 120)


@pytest.mark.real_data
def test_cifar10_as_a_folder_and_as_a_csv_file_is_cifar10(tmp_path: Path) -> None:
    """All 60,000 images. No two have equal pixels in both parts or under two labels, so nothing has to be allowed."""
    published = load_published(RunConfig())
    folder, rows = tmp_path / "cifar10", ["file_name,label,split"]
    for name in ("train", "test"):
        split = getattr(published, name)
        for place, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            file = f"{name}/{published.class_names[label]}/{place:05d}.png"
            write(folder, {file: encoded(image)})
            rows.append(f"cifar10/{file},{published.class_names[label]},{name}")
    write(tmp_path, {"cifar10.csv": "\n".join(rows).encode()})
    config = RunConfig()
    wanted = load_dataset(config)
    for dataset in (f"folder:{folder}", f"csv:{tmp_path / 'cifar10.csv'}"):
        data = dataclasses.replace(config.data, dataset=dataset, cache_dir=str(tmp_path / "cache"))
        found = load_dataset(dataclasses.replace(config, data=data))
        assert found.class_names == wanted.class_names
        assert dict(found.contents.images) == {"train": 45_000, "validation": 5_000, "test": 10_000}
        assert found.contents.digest == wanted.contents.digest
        for name in ("train", "validation"):
            np.testing.assert_array_equal(getattr(found, name).images[:], getattr(wanted, name).images)
            np.testing.assert_array_equal(getattr(found, name).labels, getattr(wanted, name).labels)
        # CIFAR-10's test split keeps its published order.
        assert sorted(contents(found.test)) == sorted(contents(wanted.test))


def test_the_line_about_a_set_says_how_much_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_classes(tmp_path / "set", {"cat": 10, "dog": 10})
    write(folder, {"cat/broken.png": b"", "notes.txt": b""})
    load(folder, bad_images="skip")
    assert re.fullmatch(
        r"pictures: 20 of 2 classes, 32 x 32 px; 2 files skipped\n|pictures: 20 of 2 classes, 8 x 8 px; 2 files skipped\n",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize("flag", ["workdir", "cache_dir"])
def test_a_run_may_write_beside_its_pictures_but_not_between_them(flag: str, tmp_path: Path) -> None:
    """Otherwise `evaluate` would find one class more."""
    folder = write_classes(tmp_path / "set", {"cat": 1})
    (tmp_path / "link").symlink_to("set")
    flags: dict[str, object] = {
        "dataset": f"folder:{folder}",
        "workdir": "runs/a",
        "cache_dir": str(tmp_path / "cache"),
    }
    check_outside(from_values(flags))
    for path in (folder / ".cache" / "a", tmp_path / "set2", tmp_path):
        check_outside(from_values(flags | {flag: str(path)}))
    for path in (folder, folder / "cat", folder / "new" / "a", tmp_path / "link" / "new", folder / ".a" / ".." / "new"):
        with pytest.raises(UserError, match=rf"^--{flag} has to lie outside .* Received: {path}$"):
            check_outside(from_values(flags | {flag: str(path)}))
    check_outside(from_values(flags | {"dataset": f"csv:{folder}/set.csv", flag: str(folder / "cat")}))
