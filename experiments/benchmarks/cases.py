"""The cases that are measured. This module imports only the standard library."""

from collections.abc import Callable
from typing import Literal, NamedTuple

Work = Literal["frozen_forward", "train_step", "head_phase", "inference", "pipeline"]

SOURCE_SIZE = 32  # side of the uint8 images that every system starts from, in pixels
CLASSES = 10
HEAD_EPOCHS = 10


class Case(NamedTuple):
    """One work at one size."""

    work: Work
    image_size: int  # side in pixels to which images are resized
    batch_size: int


class Runnable(NamedTuple):
    """A case that a system has set up."""

    # Does the work for so many batches. Returns the seconds if it measured them itself.
    run: Callable[[int], float | None]
    images_per_batch: float


class NotMeasuredError(Exception):
    """Raised if a system does not do a work. The message says why."""


# Batch sizes of which each system takes its best.
BATCH_SIZES: dict[tuple[Work, int], tuple[int, ...]] = {
    ("frozen_forward", 32): (64, 128, 256),
    ("frozen_forward", 64): (32, 64, 128),
    ("frozen_forward", 128): (16, 32, 64),
    ("train_step", 32): (64, 128, 256),
    ("train_step", 64): (32, 64, 128),
    ("train_step", 128): (16, 32, 64),
    ("head_phase", 64): (64,),
    ("pipeline", 32): (64, 128, 256),
}
# Batch sizes that are cases of their own.
FIXED = (
    Case("inference", 64, 1),
    Case("inference", 64, 64),
)
