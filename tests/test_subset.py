"""What a run learns from: some classes, few images, corrected or noisy labels, against NumPy and against whole data sets."""

from pathlib import Path

import numpy as np
import pytest

from cifar_keras.config import RunConfig, SubsetConfig, from_values
from cifar_keras.data.datasets import load_dataset, load_published
from cifar_keras.data.subset import keep_classes, keep_corrections, read_corrections, reduce_train
from cifar_keras.data.types import Dataset, PublishedDataset, contents_of, digests_of
from cifar_keras.errors import UserError
from cifar_keras.files.finished_run import with_kept_exclude


def synthetic(**flags: str | int | float) -> RunConfig:
    return from_values({"dataset": "synthetic", **flags})


@pytest.fixture(scope="module")
def published() -> PublishedDataset:
    return load_published(synthetic())


@pytest.fixture(scope="module")
def whole() -> Dataset:
    return load_dataset(synthetic())


def test_kept_classes_have_their_images_and_new_numbers(published: PublishedDataset) -> None:
    kept = keep_classes(published, "truck, cat")
    assert kept.class_names == ("cat", "truck")
    for before, after, names in (
        (published.train, kept.train, kept.names),
        (published.test, kept.test, None),
    ):
        wanted = np.flatnonzero(np.isin(before.labels, [3, 9]))
        np.testing.assert_array_equal(after.images[:], before.images[wanted])
        np.testing.assert_array_equal(after.labels, (before.labels[wanted] == 9).astype(int))
        if names is not None:
            assert names == tuple(f"train[{place}]" for place in wanted)
    validation = published.test.at(np.arange(50))
    kept = keep_classes(published._replace(validation=validation), "cat,dog")
    assert kept.validation is not None
    assert set(kept.validation.labels) == {0, 1}


def test_all_classes_are_kept_if_none_is_named(published: PublishedDataset) -> None:
    assert keep_classes(published, "") is published


@pytest.mark.parametrize(
    ("classes", "reason"), [("cat", "at least two"), ("cat,lion", "lion are none"), (",", "are none")]
)
def test_classes_that_cannot_be_kept_are_named(published: PublishedDataset, classes: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^--classes has to name .*{reason}.*\. Received: {classes}$"):
        keep_classes(published, classes)


def test_a_run_of_some_classes_is_evaluated_on_them_alone() -> None:
    dataset = load_dataset(synthetic(classes="cat,dog,ship"))
    assert dataset.class_names == ("cat", "dog", "ship")
    assert dataset.contents.images == (("train", 108), ("validation", 12), ("test", 30))


def test_few_images_of_each_class_are_some_of_the_train_split(whole: Dataset) -> None:
    few, again, other = (reduce_train(whole, SubsetConfig(examples_per_class=5), seed) for seed in (0, 0, 1))
    assert np.bincount(few.train.labels).tolist() == [5] * 10
    pixels = [image.tobytes() for image in whole.train.images[:]]
    places = [pixels.index(image.tobytes()) for image in few.train.images[:]]
    assert places == sorted(set(places))  # in the order of the train split, none twice
    np.testing.assert_array_equal(few.train.labels, whole.train.labels[np.array(places)])
    assert contents_of(few) == contents_of(again) != contents_of(other)
    assert few.validation is whole.validation
    assert few.test is whole.test


def test_more_images_than_a_class_has_are_refused(whole: Dataset) -> None:
    with pytest.raises(
        UserError, match=r"^--examples_per_class has to be at most 36, the training images of airplane\. Received: 37$"
    ):
        reduce_train(whole, SubsetConfig(examples_per_class=37), 0)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_noise_replaces_exactly_so_many_labels_by_any_other_class(whole: Dataset, fraction: float) -> None:
    shifts = np.zeros(10, np.int64)
    for seed in range(40):
        noisy = reduce_train(whole, SubsetConfig(label_noise=fraction), seed)
        assert (noisy.train.labels != whole.train.labels).sum() == round(fraction * 360)
        assert noisy.train.images is whole.train.images
        assert noisy.validation is whole.validation
        shifts += np.bincount((noisy.train.labels - whole.train.labels) % 10, minlength=10)
    others = shifts[1:]
    # Chi-square of 9 outcomes: mean 8, standard deviation 4.
    assert ((others - others.mean()) ** 2 / others.mean()).sum() < 8 + 5 * 4


def test_what_explain_found_can_be_left_out_and_relabelled(published: PublishedDataset, tmp_path: Path) -> None:
    file = tmp_path / "suspects.csv"
    file.write_text("index,name,new_label\n3,train[3],\n5,train[5],cat\n")
    found = read_corrections(published, str(file))
    assert found is not None
    assert np.flatnonzero(~found.stays).tolist() == [3]
    wanted = published.train.labels.copy()
    wanted[5] = 3
    np.testing.assert_array_equal(found.labels, wanted)
    assert read_corrections(published, "") is None


def test_corrections_move_no_other_image_into_another_split(
    published: PublishedDataset, whole: Dataset, tmp_path: Path
) -> None:
    """Ten images that are left out and ten with another label, in train and in validation."""
    labels = dict(zip(map(bytes, digests_of(published.train.images)), published.train.labels, strict=True))
    file = tmp_path / "wrong.csv"
    rows = [f"train[{place}],{'' if place % 2 else 'cat'}" for place in range(0, 400, 21)]
    file.write_text("\n".join(["name,new_label", *rows]))
    dropped = {bytes(digest) for digest in digests_of(published.train.images[np.arange(21, 400, 42)])}
    renamed = {bytes(digest) for digest in digests_of(published.train.images[np.arange(0, 400, 42)])}
    corrected = load_dataset(synthetic(exclude=str(file)))
    touched = 0
    for name in ("train", "validation"):
        before = list(map(bytes, digests_of(getattr(whole, name).images)))
        wanted = [(digest, 3 if digest in renamed else labels[digest]) for digest in before if digest not in dropped]
        split = getattr(corrected, name)
        assert list(zip(map(bytes, digests_of(split.images)), split.labels, strict=True)) == wanted
        touched += bool(dropped & set(before))
    assert touched == 2, "the test has to leave out images of both splits"
    np.testing.assert_array_equal(corrected.test.labels, whole.test.labels)


def test_no_class_may_lose_all_of_its_images(published: PublishedDataset, tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    places = np.flatnonzero(published.train.labels == 3)
    file.write_text("name\n" + "".join(f"train[{place}]\n" for place in places))
    with pytest.raises(UserError, match=r"^--exclude leaves no training image of cat\. Received: .*all\.csv$"):
        load_dataset(synthetic(exclude=str(file)))


def test_a_workdir_keeps_the_corrections_of_its_run(tmp_path: Path) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text("name\ntrain[3]\n")
    (tmp_path / "run").mkdir()
    keep_corrections("", tmp_path / "run")
    config = synthetic(exclude=str(file))
    assert with_kept_exclude(config, tmp_path / "run") == config
    keep_corrections(str(file), tmp_path / "run")
    wanted = load_dataset(config).contents
    file.unlink()
    kept = with_kept_exclude(config, tmp_path / "run")
    assert load_dataset(kept).contents == wanted
    assert with_kept_exclude(synthetic(), tmp_path / "run") == synthetic()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"index\n3\n", "has to have a column name"),
        (b"", "has to have a column name"),
        (b"name\ntrain[400]\n", r"names train\[400\], which is not in the train set"),
        (b"name\ntrain[1]\ntrain[1]\n", r"names train\[1\] twice"),
        (b"name,new_label\ntrain[1],lion\n", r"gives train\[1\] a label that is no class: lion"),
        (b"name\n\xff\n", "is not a CSV file of UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_corrections_that_cannot_be_made_are_named(
    published: PublishedDataset, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "suspects.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^--exclude {reason}.*\. Received: .*suspects\.csv$"):
        read_corrections(published, str(file))


def test_an_image_of_which_there_are_several_is_left_out_or_relabelled_each_time(
    published: PublishedDataset, tmp_path: Path
) -> None:
    """As a CSV file that lists a picture twice has it, with --allow_duplicates."""
    repeated = published._replace(names=("twice", "twice", *published.names[2:]))
    file = tmp_path / "exclude.csv"
    file.write_text("name\ntwice\n")
    found = read_corrections(repeated, str(file))
    assert found is not None
    assert np.flatnonzero(~found.stays).tolist() == [0, 1]
    other = (published.train.labels[0] + 1) % 10
    file.write_text(f"name,new_label\ntwice,{published.class_names[other]}\n")
    found = read_corrections(repeated, str(file))
    assert found is not None
    assert found.labels[:2].tolist() == [other, other]
    assert found.stays.all()
