"""What a run learns from: some classes, few images, corrected or noisy labels, against NumPy and against whole data sets."""

from pathlib import Path

import numpy as np
import pytest

from cifar_keras.config import RunConfig, SubsetConfig, from_values
from cifar_keras.data.datasets import load_dataset, load_published
from cifar_keras.data.subset import keep_classes, reduce_train, without_suspects
from cifar_keras.data.types import Dataset, PublishedDataset, contents_of
from cifar_keras.errors import UserError


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
    kept = without_suspects(published, str(file))
    assert len(kept.train.labels) == len(kept.names) == 399
    assert "train[3]" not in kept.names
    np.testing.assert_array_equal(kept.train.images[:], np.delete(published.train.images[:], 3, axis=0))
    wanted = published.train.labels.copy()
    wanted[5] = 3
    np.testing.assert_array_equal(kept.train.labels, np.delete(wanted, 3))
    assert load_dataset(synthetic(exclude=str(file))).contents.images[0] == ("train", 359)


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
        without_suspects(published, str(file))


def test_an_image_of_which_there_are_several_is_left_out_or_relabelled_each_time(
    published: PublishedDataset, tmp_path: Path
) -> None:
    """As a CSV file that lists a picture twice has it, with --allow_duplicates."""
    repeated = published._replace(names=("twice", "twice", *published.names[2:]))
    file = tmp_path / "exclude.csv"
    file.write_text("name\ntwice\n")
    kept = without_suspects(repeated, str(file))
    np.testing.assert_array_equal(kept.train.images[:], published.train.images[2:])
    np.testing.assert_array_equal(kept.train.labels, published.train.labels[2:])
    assert kept.names == published.names[2:]
    other = published.class_names[(published.train.labels[0] + 1) % 10]
    file.write_text(f"name,new_label\ntwice,{other}\n")
    relabelled = without_suspects(repeated, str(file))
    assert [published.class_names[label] for label in relabelled.train.labels[:2]] == [other, other]
    assert len(relabelled.train.labels) == len(published.train.labels)
