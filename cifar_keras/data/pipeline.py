"""From verified images to batches: `tf.data` datasets for training and for evaluation."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data.types import Images, LabelledImages, StoredImages

# Purposes of random draws. With one for each, the order of an epoch and its augmentation share no key.
ORDER, AUGMENTATION = 0, 1

PARALLEL_CALLS = os.cpu_count() or 1
PREFETCHED_BATCHES = 4
# Twice as many as are needed: see `_shuffled`.
SHUFFLE_ROUNDS = 16


class Targets(TypedDict):
    """The targets from which the network learns. The first axis of each field is the batch."""

    labels: tf.Tensor  # float32 [n, classes]: probabilities, one of them 1 unless an augmentation mixes images
    # A teacher's float32 logits [n, classes]. The examples of train have them for each view of an image: [n, views, classes].
    teacher: NotRequired[tf.Tensor]


class Batch(NamedTuple):
    """One element of a dataset. Keras's `fit` reads it as a pair of inputs and targets."""

    inputs: tf.Tensor
    targets: Targets


# Takes a batch and its key, int64 [2], and returns the batch to learn from. The same batch and key give the same result.
Augmentation = Callable[[Batch, tf.Tensor], Batch]


class Examples(NamedTuple):
    """A split from which `tf.data` gathers batches. A run makes all batches of a split from the same one."""

    # uint8 images [n, height, width, 3], in the host's memory or on the disk; or the features that a frozen network computes from them
    inputs: tf.Tensor | StoredImages
    targets: Targets

    @property
    def total(self) -> int:
        """The number of examples."""
        return int(self.inputs.shape[0])

    @property
    def images(self) -> Images:
        """The images, uint8 `[n, height, width, 3]`. An array shares the memory of the tensor."""
        return self.inputs if isinstance(self.inputs, StoredImages) else np.asarray(self.inputs)


def to_examples(split: LabelledImages, class_count: int) -> tuple[Examples, LabelledImages]:
    """Return a split for `tf.data`, and the same split as arrays that share its memory.

    Keep the returned arrays in place of the old ones: the images are then in memory only once (138 MB for 45,000 at 32 px). Stored
    images stay on the disk.
    """
    if isinstance(split.images, StoredImages):
        with tf.device("CPU"):
            return Examples(split.images, Targets(labels=tf.one_hot(split.labels, class_count))), split
    # On a GPU the images would take its memory, and would be copied back for each batch.
    with tf.device("CPU"):
        # A tensor made from an array holds a second copy of it all its life. The result of an operation does not.
        images = tf.identity(tf.convert_to_tensor(split.images))
        labels = tf.one_hot(split.labels, class_count)
    return Examples(images, Targets(labels=labels)), LabelledImages(np.asarray(images), split.labels)


def of_views(targets: Targets, views: tf.Tensor) -> Targets:
    """Return targets with the teacher's logits, if any, of one view of each image: `[n, views, classes]` to `[n, classes]`.

    Args:
        targets: of a batch.
        views: int32 `[n]`: 0 is the image, 1 its mirror image. If there are logits of only one view, they stand for both.
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
    """Return shuffled and augmented batches, one for each step, in order.

    Batch n of epoch e depends only on the examples, `seed`, e and n. It does not depend on where the dataset begins, on the
    parallelism, or on other random draws. Each epoch has its own order of all images, and takes the first batches of that
    order. So no image comes twice in an epoch.

    Args:
        examples: the train split.
        global_batch_size: images per batch, over all devices together.
        steps_per_epoch: batches per epoch.
        steps: which batches. The batches of epoch e begin at `e * steps_per_epoch`, whatever the run has seen before.
        seed: the run's seed.
        augment: e.g. what `make_augmentation` returns.
        parallel_calls: batches made at the same time. None makes one after the other; with deterministic operations TensorFlow
            does so in any case, but reports an error if this is not None.

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
    """Return every image once, unchanged and in order. The last batch may be smaller.

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
    """Return arrays `[n, ...]` in batches, without labels. The last batch may be smaller."""
    return tf.data.Dataset.from_tensor_slices(inputs).batch(batch_size).with_options(_options())


def _gather(examples: Examples, indices: tf.Tensor) -> Batch:
    targets = tf.nest.map_structure(lambda values: tf.gather(values, indices), examples.targets)
    if not isinstance(examples.inputs, StoredImages):
        return Batch(tf.gather(examples.inputs, indices), targets)
    # Not stateful: the same indices give the same images, so that several batches may be read at the same time.
    images = tf.numpy_function(examples.inputs.__getitem__, [indices], tf.uint8, stateful=False)
    return Batch(tf.ensure_shape(images, (indices.shape[0], *examples.inputs.shape[1:])), targets)


def _key(seed: int, purpose: int, epoch: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(tf.constant([seed, purpose], tf.int64), epoch)


def _shuffled(places: tf.Tensor, key: tf.Tensor, total: int) -> tf.Tensor:
    """Return the values at some places of a random permutation of 0..total - 1, without computing all of it.

    `tf.random.experimental.index_shuffle` does the same in 4 rounds. Its orders of 45,000 places correlate by up to 0.68 from
    epoch to epoch, and neighbours in one order by -0.1. With 8 rounds neither differs from chance.
    """
    key = tf.concat([key, tf.zeros([1], key.dtype)], axis=0)
    last = tf.constant(total - 1, places.dtype)
    return tf.raw_ops.RandomIndexShuffle(index=places, seed=key, max_index=last, rounds=SHUFFLE_ROUNDS)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True  # elements come in order, even if several are made at a time
    # The thread that tunes a pipeline sleeps 10 ms, then 20, 40 ..., up to a minute, and the end of an iterator waits until it
    # wakes: a `fit` of 4.3 s took 5.1 s. It would choose parallel calls and prefetching, which are set above.
    options.autotune.enabled = False
    # With oneDNN, tf.data's graph rewriting makes another copy of all images (measured: 2.3 times their size held, not 1.2).
    options.experimental_optimization.apply_default_optimizations = False
    # One process feeds all devices. Each device gets its part of every batch, and nothing else is split.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
