"""Verified images to batches: `tf.data` datasets for training and for evaluation."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data.types import LabelledImages

# What a random draw is for, so that the order of an epoch and its augmentation share no key.
ORDER, AUGMENTATION = 0, 1

TIMED_BATCHES = 30
PARALLEL_CALLS = os.cpu_count() or 1
PREFETCHED_BATCHES = 4
SHUFFLE_ROUNDS = 16  # twice as many as it takes


class Targets(TypedDict):
    """What is learned from inputs. Each field begins with the batch."""

    labels: tf.Tensor  # float32 [n, classes]: probabilities, of which one is 1 until an augmentation mixes images
    # float32 logits of a teacher, [n, classes]. Train's examples have those of each view of an image, [n, views, classes].
    teacher: NotRequired[tf.Tensor]


class Batch(NamedTuple):
    """An element of a dataset, which Keras's `fit` takes for a pair of inputs and targets."""

    inputs: tf.Tensor
    targets: Targets


# A batch and its key, int64 [2] -> the batch that is learned from; the same batch and key give the same result.
Augmentation = Callable[[Batch, tf.Tensor], Batch]


class Examples(NamedTuple):
    """A split in the host's memory, where `tf.data` gathers its batches. All batches of a run come out of the same one."""

    inputs: tf.Tensor  # uint8 images [n, height, width, 3], or the features that a frozen network computes of them
    targets: Targets

    @property
    def total(self) -> int:
        """Number of examples."""
        return int(self.inputs.shape[0])


def to_examples(split: LabelledImages, class_count: int) -> tuple[Examples, LabelledImages]:
    """Move a split to where `tf.data` reads it.

    Returns:
        The tensors, and the split again as arrays that are views of their memory, to be kept in place of the old ones:
        the images are then in memory once (138 MB for 45,000 at 32 px).
    """
    with tf.device("CPU"):  # on a GPU it would take its memory and be copied back for each batch
        # A tensor that was made of an array keeps a second copy of it for as long as it lives; an operation's result does not.
        images = tf.identity(tf.convert_to_tensor(split.images))
        labels = tf.one_hot(split.labels, class_count)
    return Examples(images, Targets(labels=labels)), LabelledImages(np.asarray(images), split.labels)


def of_views(targets: Targets, views: tf.Tensor) -> Targets:
    """Choose the teacher's logits of one view of each image, if there are any: `[n, views, classes]` to `[n, classes]`.

    Args:
        targets: of a batch.
        views: int32 `[n]`: 0 is the image, 1 its mirror image. Where there are logits of one view alone, it stands for both.
    """
    if "teacher" not in targets:
        return targets
    views = tf.minimum(views, targets["teacher"].shape[1] - 1)
    return {**targets, "teacher": tf.gather(targets["teacher"], views, batch_dims=1)}


def training_batches(
    examples: Examples,
    *,
    global_batch_size: int,
    steps_per_epoch: int,
    steps: range,
    seed: int,
    augment: Augmentation,
    parallel_calls: int | None = PARALLEL_CALLS,
) -> tf.data.Dataset:
    """Shuffle and augment, a whole batch for each step, one after another.

    Batch n of epoch e depends on the examples, `seed`, e and n alone: not on where the dataset begins, not on the parallelism,
    not on what else draws random numbers. An epoch takes the first batches of its own order of all images, so none comes twice
    in it.

    Args:
        examples: the train split.
        global_batch_size: images per batch, over all devices together.
        steps_per_epoch: batches of an epoch.
        steps: which batches: those of epoch e are `e * steps_per_epoch` and the next, whatever a run has seen before.
        seed: the run's seed.
        augment: e.g. what `make_augmentation` returns.
        parallel_calls: batches that are made at the same time; None makes one after the other, as TensorFlow does in any case where
            its operations are to be deterministic, but then not without calling it an error.

    Returns:
        A dataset of `Batch`, each of `global_batch_size` examples.
    """

    def batch(step: tf.Tensor) -> Batch:
        epoch, number = step // steps_per_epoch, step % steps_per_epoch
        places = number * global_batch_size + tf.range(global_batch_size, dtype=tf.int64)
        indices = _shuffled(places, _key(seed, ORDER, epoch), examples.total)
        key = tf.random.experimental.stateless_fold_in(_key(seed, AUGMENTATION, epoch), number)
        return augment(_gather(examples, indices), key)

    batches = tf.data.Dataset.range(steps.start, steps.stop).map(batch, num_parallel_calls=parallel_calls)
    return batches.prefetch(PREFETCHED_BATCHES).with_options(_options())


def evaluation_batches(examples: Examples, *, global_batch_size: int) -> tf.data.Dataset:
    """Return every image once, unchanged and in order; the last batch has those that are left.

    Args:
        examples: the split.
        global_batch_size: images per batch, over all devices together.

    Returns:
        A dataset of `Batch`.
    """
    indices = tf.data.Dataset.range(examples.total).batch(global_batch_size)
    batches = indices.map(lambda places: _gather(examples, places))
    return batches.prefetch(PREFETCHED_BATCHES).with_options(_options())


def input_batches(inputs: NDArray[Any], batch_size: int) -> tf.data.Dataset:
    """Return arrays `[n, ...]` batch by batch, without labels; the last batch has those that are left."""
    return tf.data.Dataset.from_tensor_slices(inputs).batch(batch_size).with_options(_options())


def measure_speed(batches: tf.data.Dataset) -> float | None:
    """Return how many examples per second a pipeline gives when nothing else runs, over its first batches; None for one batch."""
    sizes, times = [], []
    for inputs, _ in batches.take(1 + TIMED_BATCHES):
        sizes.append(inputs.shape[0])
        times.append(time.perf_counter())
    # From the first batch on, which waits for the pipeline to be built.
    return sum(sizes[1:]) / (times[-1] - times[0]) if len(sizes) > 1 else None


def _gather(examples: Examples, indices: tf.Tensor) -> Batch:
    return Batch(*tf.nest.map_structure(lambda values: tf.gather(values, indices), tuple(examples)))


def _key(seed: int, purpose: int, epoch: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(tf.constant([seed, purpose], tf.int64), epoch)


def _shuffled(places: tf.Tensor, key: tf.Tensor, total: int) -> tf.Tensor:
    """Return what stands at some places of a permutation of 0..total - 1, without making all of it.

    `tf.random.experimental.index_shuffle` does the same in 4 rounds. Its orders of 45,000 places correlate by up to 0.68 from
    epoch to epoch, and neighbours in one order by -0.1; with 8 rounds neither is told from chance.
    """
    key = tf.concat([key, tf.zeros([1], key.dtype)], axis=0)
    last = tf.constant(total - 1, places.dtype)
    return tf.raw_ops.RandomIndexShuffle(index=places, seed=key, max_index=last, rounds=SHUFFLE_ROUNDS)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True  # elements in order, however many are made at a time
    # The thread that tunes a pipeline sleeps 10 ms, then 20, 40 ..., up to a minute, and whoever ends an iterator waits until it
    # wakes up: a `fit` of 4.3 s took 5.1 s. What it would find, parallel calls and prefetching, is given above.
    options.autotune.enabled = False
    # With oneDNN its rewriting of the graph makes another copy of all images (measured: 2.3 times their size held, not 1.2).
    options.experimental_optimization.apply_default_optimizations = False
    # One process feeds all devices: each gets its part of every batch, and nothing else is split.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
