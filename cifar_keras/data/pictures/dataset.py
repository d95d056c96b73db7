"""Make a data set of decoded pictures: check them, and divide them into splits."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from cifar_keras.config import BadImages, RunConfig, largest_image_size
from cifar_keras.data.pictures.listing import Listing
from cifar_keras.data.pictures.store import Entry, Size, Store, store
from cifar_keras.data.splits import content_order, hold_out
from cifar_keras.data.subset import wanted_classes
from cifar_keras.data.types import LabelledImages, PublishedDataset, Skipped
from cifar_keras.errors import UserError

# Parts of a message about files, and files of one part; the others are counted.
MOST_LINES, MOST_COPIES = 50, 5


def load_pictures(listing: Listing, config: RunConfig, *, is_published: bool = False) -> PublishedDataset:
    """Return the data set of listed pictures, whose images stay on the disk.

    The pictures of each split come in the order of their content; those of a published set in the order of the listing. Pictures with
    equal pixels, one label and one split are kept once. A test set that is missing is held out from the train set.

    Args:
        listing: the pictures.
        config: of the run.
        is_published: whether it is a data set that others measure too, so that all of its pictures are kept.

    Raises:
        UserError: files cannot be used, pictures lie in two splits or have two labels, or a split or class has too few of them.
    """
    data, received = config.data, f"Received: --dataset={config.data.dataset}"
    size = Size(data.stored_size or largest_image_size(config), own=data.stored_size == 0)
    stored = store(listing, size, data.cache_dir)
    keep_all = is_published or data.allow_duplicates
    _check_files(stored, data.bad_images, keep_all, received)
    found = _classes_of({entry.label for entry in stored.entries}, listing.class_order, received)
    # Before the classes are counted, because those that are not wanted may be too small.
    class_names = wanted_classes(found, config.subset.classes)
    kept = _kept(stored.entries, class_names, keep_all)
    _tell(stored, len(kept), class_names, listing.labels - set(found))
    indices = {name: index for index, name in enumerate(class_names)}
    # Those of classes that are not wanted are never read.
    labels = np.array([indices.get(entry.label, -1) for entry in stored.entries], np.int64)

    def images(places: NDArray[np.int64]) -> LabelledImages:
        return LabelledImages(stored.images.at(places), labels[places])

    def places_of(split: str) -> NDArray[np.int64]:
        places = np.array([place for place in kept if (stored.entries[place].split or "train") == split], np.int64)
        # By content, so that nothing depends on the names of files.
        return places if is_published else places[content_order(images(places))]

    train, validation, test = (places_of(split) for split in ("train", "validation", "test"))
    needed = 1 + (len(validation) == 0) + (len(test) == 0)
    _check_classes(labels[train], needed, class_names, received)
    if len(test) == 0:
        left, held_out = hold_out(labels[train], data.test_share, config.seed, "test_share")
        train, test = train[left], train[held_out]
    return PublishedDataset(
        images(train),
        images(test),
        class_names,
        validation=images(validation) if len(validation) else None,
        names=tuple(stored.entries[place].name for place in train),
        skipped=tuple(stored.skipped),
    )


def _classes_of(labels: Set[str], order: Sequence[str], received: str) -> tuple[str, ...]:
    """Return the names of the classes that occur, in the order of the set, or sorted if it has none."""
    class_names = tuple(name for name in order or sorted(labels) if name in labels)
    if len(class_names) < 2:
        found = f"one class, {class_names[0]}" if class_names else "no pictures"
        raise UserError(f"--dataset has to have pictures of at least two classes; it has {found}. {received}")
    return class_names


def _tell(stored: Store, count: int, class_names: Sequence[str], lost: Set[str]) -> None:
    """Print what the data set has, and warn of classes of which no picture can be used."""
    wanted = set(class_names)
    copies, skipped = sum(entry.label in wanted for entry in stored.entries) - count, len(stored.skipped)
    if lost:
        names = ", ".join(sorted(lost)[:MOST_LINES])
        print(f"warning: no picture can be used of {names}: no classes of this run", file=sys.stderr, flush=True)
    print(
        f"pictures: {count:,} of {len(class_names)} classes, {' x '.join(map(str, stored.images.shape[1:3]))} px"
        + (f"; {copies:,} copies left out" if copies else "")
        + (f"; {skipped:,} files skipped" if skipped else ""),
        flush=True,
    )


def _kept(entries: Sequence[Entry], class_names: Sequence[str], keep_all: bool) -> list[int]:
    """Return the places of the entries of some classes; of each content, label and split only the first, or all."""
    first: dict[tuple[str, str, str], int] = {}
    wanted = set(class_names)
    places = [place for place, entry in enumerate(entries) if entry.label in wanted]
    for place in places:
        first.setdefault((entries[place].digest, entries[place].label, entries[place].split), place)
    return places if keep_all else list(first.values())


def _check_files(stored: Store, bad_images: BadImages, keep_all: bool, received: str) -> None:
    """Check that every file can be used, as far as the settings ask.

    Raises:
        UserError: files cannot; the message names them.
    """
    parts = []
    if stored.skipped and bad_images is BadImages.REFUSE:
        parts.append(
            f"{len(stored.skipped)} files cannot be used (--bad_images=skip leaves them out): {_listed(stored.skipped)}"
        )
    if not keep_all:
        copies: dict[str, list[Entry]] = defaultdict(list)
        for entry in stored.entries:
            copies[entry.digest].append(entry)
        found = [
            (title, [members for members in copies.values() if len({getattr(each, field) for each in members}) > 1])
            for title, field in (("lie in two splits", "split"), ("have two labels", "label"))
        ]
        parts += [
            f"{len(groups)} pictures {title} (--allow_duplicates trains all the same): {_same(groups)}"
            for title, groups in found
            if groups
        ]
    if parts:
        raise UserError(f"--dataset: {'; '.join(parts)}. {received}")


def _check_classes(labels: NDArray[np.int64], needed: int, class_names: Sequence[str], received: str) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    if small := [f"{class_names[index]} ({counts[index]})" for index in np.flatnonzero(counts < needed).tolist()]:
        least = "1 picture" if needed == 1 else f"{needed} pictures"
        raise UserError(
            f"--dataset has to have at least {least} of each class for training, and for the splits that are taken from them; "
            f"too few are of {', '.join(small[:MOST_LINES])}. {received}"
        )


def _listed(skipped: Iterable[Skipped]) -> str:
    return _limited([f"{each.path}: {each.reason}" for each in sorted(skipped)])


def _same(groups: Iterable[Sequence[Entry]]) -> str:
    return _limited(sorted(_equal(sorted(entry.name for entry in group)) for group in groups))


def _equal(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_COPIES:,} more" if len(names) > MOST_COPIES else ""
    return " = ".join(names[:MOST_COPIES]) + more


def _limited(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - MOST_LINES:,} more" if len(lines) > MOST_LINES else ""
    return "; ".join(lines[:MOST_LINES]) + more
