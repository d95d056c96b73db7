"""Other test sets with CIFAR-10's classes, by their TFDS names. The user has to prepare them."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from cifar_keras.data.types import LabelledImages
from cifar_keras.errors import UserError, reason_of
from cifar_keras.files import paths


class OtherSet(NamedTuple):
    """Another test set, for robustness."""

    name: str
    split: LabelledImages
    # [n, classes], fraction of people who chose each class; rows sum to 1.
    soft_labels: NDArray[np.float64] | None = None
    # Common name of sets with the same images in the same order. A mean over them is reported. "" is none.
    suite: str = ""


CORRUPTED = "cifar10_corrupted"
# The labels that people gave the images of the train set (arXiv:2110.12088).
NOISY_LABELS = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")


def find_other_sets(names: Sequence[str], data_dir: str) -> list[str]:
    """Return the TFDS names for the names in the settings, and check that all of these sets are prepared.

    Args:
        names: `cifar10_1` (stands for its newest version, v6) or `cifar10_1/v4`; `cifar10_corrupted` (stands for all of it that is
            prepared) or one corruption such as `cifar10_corrupted/fog_3`; `cifar10_h`; `cifar10_n`.
        data_dir: TFDS folder.

    Raises:
        UserError: a set is not prepared.
    """
    if not names:
        return []
    folder, found = paths.expand("data_dir", data_dir), []
    for name in names:
        if name == "cifar10_1":
            found.append("cifar10_1/v6")
        elif name == CORRUPTED:
            configs = sorted(path.name for path in (folder / name).glob("*_[1-5]"))
            if not configs:
                raise _missing(name, folder, "there is nothing of it")
            found += [f"{name}/{config}" for config in configs]
        else:
            found.append(name)
    found = list(dict.fromkeys(found))
    for name in found:
        try:
            prepared = tfds.builder(name, data_dir=folder).is_prepared()
        # TFDS may raise almost anything here, even an AssertionError.
        except Exception as error:
            raise _missing(name, folder, reason_of(error)) from error
        if not prepared:
            raise _missing(name, folder, "it is not there")
    return found


def read_other_set(name: str, data_dir: str, held_out: LabelledImages) -> list[OtherSet]:
    """Return one of the sets that `find_other_sets` found.

    Args:
        name: its TFDS name.
        data_dir: TFDS folder.
        held_out: the validation split. cifar10_n has labels for the train set; only these images of it are returned, because `fit`
            has seen the others.

    Returns:
        A list of the one set. For cifar10_n, one set for each kind of label.

    Raises:
        UserError: the set cannot be read.
    """
    folder = paths.expand("data_dir", data_dir)
    if name == "cifar10_n":
        examples = _read(name, "train", folder, ["image", *NOISY_LABELS])
        chosen = _places_of(held_out.images[:], examples["image"].numpy())
        if len(chosen) == 0:
            raise UserError(
                f"--test_sets={name} has labels of CIFAR-10's training images. Received: images that are others"
            )
        noisy = [(label, _labelled(examples, label)) for label in NOISY_LABELS]
        return [
            OtherSet(f"{name}/{label}", LabelledImages(split.images[chosen], split.labels[chosen]))
            for label, split in noisy
        ]
    soft = ["soft_label"] if name == "cifar10_h" else []
    examples = _read(name, "test", folder, ["image", "label", *soft])
    fractions = examples["soft_label"].numpy().astype(np.float64) if soft else None
    # Each corruption has the images of the test split, and TFDS gives all of them the same order.
    suite = CORRUPTED if name.startswith(f"{CORRUPTED}/") else ""
    return [OtherSet(name, _labelled(examples, "label"), fractions, suite)]


def _labelled(examples: dict[str, Any], label: str) -> LabelledImages:
    return LabelledImages(examples["image"].numpy(), examples[label].numpy().astype(np.int64))


def _read(name: str, split: str, folder: Path, features: Sequence[str]) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            examples: dict[str, Any] = tfds.load(
                name,
                split=split,
                data_dir=folder,
                download=False,
                batch_size=-1,
                decoders=tfds.decode.PartialDecoding(dict.fromkeys(features, True)),
            )
    # If a set is missing or broken, TFDS may raise almost anything, even an AssertionError.
    except Exception as error:
        raise _missing(name, folder, reason_of(error)) from error
    return examples


def _missing(name: str, folder: Path, reason: str) -> UserError:
    return UserError(
        f"--test_sets: {name} is not prepared in {folder} ({reason}); TFDS prepares it, and says what it needs for that "
        f"(https://www.tensorflow.org/datasets/catalog/{name.partition('/')[0]}). Received: {name}"
    )


def _places_of(wanted: NDArray[np.uint8], images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the indices of the `images` that are also in `wanted`, with equal pixels."""
    known = {image.tobytes() for image in wanted}
    return np.flatnonzero([image.tobytes() in known for image in images])
