"""Learn from a part of a data set: some classes, few images of each, without labels that look wrong, or with noise in the labels."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_keras.config import SubsetConfig
from cifar_keras.data.types import Corrections, Dataset, LabelledImages, PublishedDataset
from cifar_keras.errors import UserError
from cifar_keras.files import paths, writing


def wanted_classes(known: Sequence[str], classes: str) -> tuple[str, ...]:
    """Return which of a data set's classes are wanted, in the order of the data set.

    Args:
        known: the names of its classes.
        classes: names of classes, with commas between; "" are all.

    Raises:
        UserError: the data set has no such class, or fewer than two are named.

    Examples:
        >>> wanted_classes(["bird", "cat", "dog"], "dog, cat")
        ('cat', 'dog')
    """
    if not classes:
        return tuple(known)
    wanted = {name.strip() for name in classes.split(",")}
    if unknown := sorted(wanted - set(known)):
        raise UserError(
            f"--classes has to name classes of the data set ({', '.join(known)}), and {', '.join(unknown)} are none. Received: {classes}"
        )
    if len(wanted) < 2:
        raise UserError(f"--classes has to name at least two classes. Received: {classes}")
    return tuple(name for name in known if name in wanted)


def keep_classes(published: PublishedDataset, classes: str) -> PublishedDataset:
    """Return a data set with only the images of some classes. "" keeps all classes.

    Args:
        published: the data set.
        classes: names of classes, with commas between.

    Raises:
        UserError: as in `wanted_classes`.
    """
    known, wanted = published.class_names, wanted_classes(published.class_names, classes)
    if len(wanted) == len(known):
        return published
    kept = np.array([index for index, name in enumerate(known) if name in wanted])
    new_labels = np.full(len(known), -1)
    new_labels[kept] = np.arange(len(kept))

    def part(split: LabelledImages) -> LabelledImages:
        chosen = split.at(np.flatnonzero(np.isin(split.labels, kept)))
        return chosen._replace(labels=new_labels[chosen.labels])

    return published._replace(
        train=part(published.train),
        test=part(published.test),
        validation=None if published.validation is None else part(published.validation),
        class_names=tuple(known[index] for index in kept),
        names=tuple(published.names[place] for place in np.flatnonzero(np.isin(published.train.labels, kept))),
    )


def read_corrections(published: PublishedDataset, exclude: str) -> Corrections | None:
    """Return which training images of a data set a CSV file leaves out, and which labels it changes; None without a file.

    Args:
        published: the data set.
        exclude: a CSV file with the columns `name` and perhaps `new_label`, such as `suspect_labels.csv` of a run; "" is none. An image
            whose `new_label` is empty is left out.

    Raises:
        UserError: the file cannot be read, names an image twice or one that is not in the train set, or an unknown class.
    """
    if not exclude:
        return None
    # A CSV file may list a picture more than once, and two names that are no text may look the same.
    places: dict[str, list[int]] = {}
    for place, name in enumerate(published.names):
        places.setdefault(name, []).append(place)
    given = _read_corrections(paths.expand("exclude", exclude), exclude)
    if unknown := sorted(given.keys() - places.keys()):
        raise UserError(f"--exclude names {unknown[0]}, which is not in the train set. Received: {exclude}")
    labels, stays = published.train.labels.copy(), np.ones(len(published.names), bool)
    for name, label in given.items():
        if not label:
            stays[places[name]] = False
        elif label in published.class_names:
            labels[places[name]] = published.class_names.index(label)
        else:
            raise UserError(f"--exclude gives {name} a label that is no class: {label}. Received: {exclude}")
    return Corrections(labels, stays)


def keep_corrections(exclude: str, workdir: Path) -> None:
    """Copy the file of `read_corrections` into the workdir of a run that begins. All that goes on with the run reads the copy."""
    if exclude and not (workdir / paths.EXCLUDED).is_file():
        writing.write_whole(workdir / paths.EXCLUDED, paths.expand("exclude", exclude).read_bytes())


def check_has_all_classes(train: LabelledImages, class_names: Sequence[str], exclude: str) -> None:
    """Check that a train split still has images of each class.

    Raises:
        UserError: it has none of a class.
    """
    counts = np.bincount(train.labels, minlength=len(class_names))
    if none := [class_names[index] for index in np.flatnonzero(counts == 0).tolist()]:
        raise UserError(f"--exclude leaves no training image of {', '.join(none)}. Received: {exclude}")


def _read_corrections(file: Path, exclude: str) -> Mapping[str, str]:
    """Return the new label of each name in a CSV file; "" leaves the image out."""
    found: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            if "name" not in (reader.fieldnames or ()):
                raise UserError(f"--exclude has to have a column name. Received: {exclude}")
            for row in reader:
                if row["name"] in found:
                    raise UserError(f"--exclude names {row['name']} twice. Received: {exclude}")
                found[row["name"]] = (row.get("new_label") or "").strip()
    except OSError as error:
        raise UserError(f"--exclude cannot be read: {error.strerror}. Received: {exclude}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--exclude is not a CSV file of UTF-8 text: {error}. Received: {exclude}") from error
    return found


def reduce_train(dataset: Dataset, settings: SubsetConfig, seed: int) -> Dataset:
    """Return a data set with fewer training images, or with noise in their labels. Validation and test stay as they are.

    Args:
        dataset: the splits of a run.
        settings: `examples_per_class`, the images that are kept of each class (0 keeps all); and `label_noise`, the fraction of the
            training labels that another class replaces, each other class with the same probability.
        seed: draws the images that are kept, and the labels that are replaced.

    Raises:
        UserError: a class has fewer images than are asked for.
    """
    train, classes = dataset.train, dataset.class_names
    of_images, of_labels = (np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(2))
    if settings.examples_per_class:
        train = train.at(
            np.sort(np.concatenate(list(_drawn(train.labels, settings.examples_per_class, classes, of_images))))
        )
    if settings.label_noise:
        labels = train.labels.copy()
        wrong = of_labels.permutation(len(labels))[: round(settings.label_noise * len(labels))]
        labels[wrong] = (labels[wrong] + of_labels.integers(1, len(classes), len(wrong))) % len(classes)
        train = train._replace(labels=labels)
    return dataset._replace(train=train)


def _drawn(
    labels: NDArray[np.int64], count: int, class_names: tuple[str, ...], generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield the places of `count` images of each class."""
    for index, name in enumerate(class_names):
        places = np.flatnonzero(labels == index)
        if len(places) < count:
            raise UserError(
                f"--examples_per_class has to be at most {len(places)}, the training images of {name}. Received: {count}"
            )
        yield generator.permutation(places)[:count]
