import itertools
import subprocess
import sys
import types
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cifar_keras.config import AugmentationConfig
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pipeline import (
    Batch,
    Examples,
    evaluation_batches,
    to_examples,
    training_batches,
)
from cifar_keras.data.types import LabelledImages
from cifar_keras.training import stopwatch
from cifar_keras.training.stopwatch import TIMED_BATCHES, measure_speed

NONE = AugmentationConfig(flip=False, crop_padding=0)
# One operation of each kind: our own, Keras's layers, the two of keras-cv.
MANY = AugmentationConfig(
    flip=True, crop_padding=4, resized_crop_scale=0.5, zoom=0.1, color_jitter=0.4, cutout=8, grid_mask=0.3
)


def examples_of(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Examples:
    return to_examples(LabelledImages(images, labels), class_count=10)[0]


def numbered(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make images that say which they are in their first two bytes, with noise behind, and labels number % 10."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    numbers = np.arange(count)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers // 256, numbers % 256
    return images, numbers % 10


def numbers_of(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    return images[:, 0, 0, 0].astype(np.int64) * 256 + images[:, 0, 0, 1]


def batches_of(
    count: int = 96,
    augmentation: AugmentationConfig = NONE,
    *,
    seed: int = 5,
    first_epoch: int = 0,
    epochs: int = 1,
    steps: int = 6,
    batch: int = 16,
    parallel_calls: int = 2,
    first_step: int = 0,
) -> list[Batch]:
    images, labels = numbered(count)
    dataset = training_batches(
        examples_of(images, labels),
        global_batch_size=batch,
        steps_per_epoch=steps,
        seed=seed,
        steps=range(first_epoch * steps + first_step, (first_epoch + epochs) * steps),
        augment=make_augmentation(augmentation),
        parallel_calls=parallel_calls,
    )
    assert dataset.cardinality().numpy() == steps * epochs - first_step
    return list(dataset.as_numpy_iterator())


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(a.inputs, b.inputs) and np.array_equal(a.targets["labels"], b.targets["labels"])
        for a, b in zip(left, right, strict=True)
    )


def test_batches_are_the_same_at_any_parallelism() -> None:
    assert same(
        batches_of(augmentation=MANY, epochs=2, parallel_calls=1),
        batches_of(augmentation=MANY, epochs=2, parallel_calls=8),
    )


def test_an_epoch_is_the_same_wherever_the_dataset_starts_and_however_long_it_is() -> None:
    whole = batches_of(augmentation=MANY, epochs=4)
    assert same(whole[12:18], batches_of(augmentation=MANY, first_epoch=2))
    # Fewer steps are the first of the epoch.
    assert same(whole[12:14], batches_of(augmentation=MANY, first_epoch=2, steps=2))


def test_every_image_comes_once_an_epoch_with_its_label_in_another_order_each_epoch() -> None:
    batches = batches_of(epochs=3)
    orders = [np.concatenate([numbers_of(batch[0]) for batch in batches[6 * e : 6 * e + 6]]) for e in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(96))
    assert len({order.tobytes() for order in orders}) == 3
    images, _ = numbered(96)
    for batch, targets in batches:
        one_hot = targets["labels"]
        assert batch.dtype == np.uint8
        assert one_hot.dtype == np.float32
        assert np.array_equal(batch, images[numbers_of(batch)])
        assert np.array_equal(one_hot, np.eye(10)[numbers_of(batch) % 10])


@pytest.mark.slow
@hypothesis.settings(max_examples=25)
@given(
    total=st.integers(1, 300),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
    epochs=st.integers(1, 3),
    data=st.data(),
)
def test_any_pipeline_can_begin_anywhere_and_shows_no_image_twice_an_epoch(
    total: int, batch: int, seed: int, epochs: int, data: st.DataObject
) -> None:
    batch = min(batch, total)
    steps = total // batch
    whole = batches_of(total, seed=seed, epochs=epochs, steps=steps, batch=batch)
    for epoch in range(epochs):
        shown = np.concatenate([numbers_of(images) for images, _ in whole[epoch * steps :][:steps]])
        assert len(set(shown.tolist())) == steps * batch
        assert shown.max() < total
    first_epoch, first_step = data.draw(st.integers(0, epochs - 1)), data.draw(st.integers(0, steps - 1))
    rest = batches_of(
        total,
        seed=seed,
        first_epoch=first_epoch,
        first_step=first_step,
        epochs=epochs - first_epoch,
        steps=steps,
        batch=batch,
    )
    assert same(whole[first_epoch * steps + first_step :], rest)


def test_what_is_left_over_changes_from_epoch_to_epoch() -> None:
    batches = batches_of(count=100, epochs=20)
    seen = [set(np.concatenate([numbers_of(batch[0]) for batch in batches[6 * e : 6 * e + 6]])) for e in range(20)]
    assert all(len(epoch) == 96 for epoch in seen)
    assert set.union(*seen) == set(range(100))


def test_an_order_is_uniform() -> None:
    # The place of image 0 over 400 epochs, in four quarters: 100 each, standard deviation sqrt(400 * 3 / 16).
    batches = batches_of(count=32, epochs=400, steps=4, batch=8)
    quarters = [index % 4 for index, batch in enumerate(batches) if 0 in numbers_of(batch[0])]
    assert (np.abs(np.bincount(quarters) - 100) < 5 * np.sqrt(400 * 3 / 16)).all()


def test_the_orders_of_a_whole_train_split_show_no_pattern() -> None:
    # As many as CIFAR-10 has; of images that are a single pixel, whose red, green and blue say which it is.
    numbers = np.arange(45_000)
    images = np.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], axis=-1).astype(np.uint8)
    batches = training_batches(
        examples_of(images[:, None, None], numbers % 10),
        global_batch_size=4500,
        steps_per_epoch=10,
        seed=5,
        steps=range(8 * 10),
        augment=make_augmentation(NONE),
    )
    seen = np.concatenate([batch.reshape(-1, 3) @ [65536, 256, 1] for batch, _ in batches.as_numpy_iterator()])
    orders = seen.reshape(8, 45_000)
    for order in orders:
        assert np.array_equal(np.sort(order), numbers)
    # Correlations of independent orders have a standard deviation of 1 / sqrt(45,000).
    limit = 5 / np.sqrt(45_000)
    between = np.corrcoef([*orders, numbers]) - np.eye(9)
    neighbours = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]
    assert np.abs(between).max() < limit
    assert np.abs(neighbours).max() < limit
    # The distance from one place to the next, of 45,000 possible ones: the most common of random orders comes about ten times.
    assert max(np.bincount(np.diff(order) % 45_000).max() for order in orders) < 20


def test_seed_epoch_and_batch_decide_the_changes() -> None:
    assert not same(batches_of(seed=1), batches_of(seed=2))
    # Equal images show the augmentation alone.
    images, labels = np.repeat(numbered(1)[0], 32, axis=0), np.zeros(32, np.int64)
    made = [
        training_batches(
            examples_of(images, labels),
            global_batch_size=16,
            steps_per_epoch=2,
            seed=seed,
            steps=range(2 * 2),
            augment=make_augmentation(AugmentationConfig()),
        )
        for seed in (1, 1, 2)
    ]
    first, again, other = ([batch[0] for batch in dataset.as_numpy_iterator()] for dataset in made)
    assert np.array_equal(first, again)
    assert len({batch.tobytes() for batch in first + other}) == 8


def test_a_training_batch_has_its_whole_shape() -> None:
    images, labels = numbered(20)
    dataset = training_batches(
        examples_of(images, labels),
        global_batch_size=8,
        steps_per_epoch=2,
        seed=0,
        steps=range(2),
        augment=make_augmentation(MANY),
    )
    wanted = (tf.TensorSpec([8, 32, 32, 3], tf.uint8), {"labels": tf.TensorSpec([8, 10], tf.float32)})
    assert dataset.element_spec == wanted


@pytest.mark.parametrize("batch_size", [1, 7, 16, 100, 1000])
def test_evaluation_gives_every_image_once_in_order(batch_size: int) -> None:
    images, labels = numbered(100)
    dataset = evaluation_batches(examples_of(images, labels), global_batch_size=batch_size)
    wanted = (tf.TensorSpec([None, 32, 32, 3], tf.uint8), {"labels": tf.TensorSpec([None, 10], tf.float32)})
    assert dataset.element_spec == wanted
    batches = list(dataset.as_numpy_iterator())
    assert len(batches) == dataset.cardinality().numpy() == -(-100 // batch_size)
    assert np.array_equal(np.concatenate([batch[0] for batch in batches]), images)
    assert np.array_equal(np.concatenate([batch.targets["labels"] for batch in batches]), np.eye(10)[labels])


MEMORY = """
import gc, numpy as np, tensorflow as tf
from cifar_keras.data.types import LabelledImages
from cifar_keras.data.pipeline import evaluation_batches, to_examples, training_batches

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096

tf.zeros(1)
before = resident()
split = LabelledImages(np.random.default_rng(0).integers(0, 256, (60_000, 32, 32, 3), dtype=np.uint8), np.zeros(60_000, np.int64))
examples, split = to_examples(split, class_count=10)
datasets = [training_batches(examples, global_batch_size=64, steps_per_epoch=2, seed=0, steps=range(2),
                             augment=lambda batch, key: batch) for _ in range(3)]
datasets.append(evaluation_batches(examples, global_batch_size=64).take(2))
iterators = [iter(dataset) for dataset in datasets]
for iterator in iterators:
    next(iterator)
print((resident() - before) / split.images.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from Linux")
@pytest.mark.slow
def test_four_pipelines_hold_the_images_once() -> None:
    # 184 MB of images; TensorFlow's own growth is some tens. One more copy would give 2.
    command = [sys.executable, "-c", MEMORY]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert 1 <= float(result.stdout) < 1.6


def set_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th look at the clock, from 0, say n(n + 1) / 2 seconds: 0, 1, 3, 6.."""
    looks = itertools.accumulate(itertools.count())
    monkeypatch.setattr(stopwatch, "time", types.SimpleNamespace(perf_counter=lambda: float(next(looks))))


def test_speed_is_what_comes_after_the_first_batch_in_the_time_since_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch)
    examples = examples_of(*numbered(100))
    # 16, 16.. and 4 images in seven batches, the last of them 21 seconds after the first.
    assert measure_speed(evaluation_batches(examples, global_batch_size=16)) == 84 / 21


def test_speed_is_measured_over_the_first_batches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch)
    batches = evaluation_batches(examples_of(*numbered(100)), global_batch_size=2)  # 50 of them
    assert measure_speed(batches) == 2 * TIMED_BATCHES / (TIMED_BATCHES * (TIMED_BATCHES + 1) / 2)
    assert len(list(batches)) == 50  # none is lost for what comes after


@pytest.mark.parametrize("count", [1, 16])
def test_a_single_batch_has_no_speed(count: int) -> None:
    assert measure_speed(evaluation_batches(examples_of(*numbered(count)), global_batch_size=16)) is None


TWO_DEVICES = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from cifar_keras.config import AugmentationConfig
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pipeline import evaluation_batches, training_batches
from tests.test_pipeline import examples_of, numbered, numbers_of

images, labels = numbered(101)
train = training_batches(examples_of(images, labels), global_batch_size=16, steps_per_epoch=6, seed=0, steps=range(12),
                         augment=make_augmentation(AugmentationConfig(color_jitter=0.2)))
test = evaluation_batches(examples_of(images, labels), global_batch_size=16)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2

parts = [[part.numpy() for part in strategy.experimental_local_results(batch)]
         for batch, _ in strategy.experimental_distribute_dataset(test)]
assert np.array_equal(np.sort(np.concatenate([numbers_of(part) for batch in parts for part in batch])), np.arange(101))
plain = [batch for batch, _ in train.as_numpy_iterator()]
split = [np.concatenate([part.numpy() for part in strategy.experimental_local_results(batch)])
         for batch, _ in strategy.experimental_distribute_dataset(train)]
assert len(plain) == 12 and all(np.array_equal(left, right) for left, right in zip(plain, split, strict=True))

with strategy.scope():
    inputs = keras.Input([None, None, 3], dtype="uint8")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10)(pooled))
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
train, test = (batches.map(lambda batch: (batch.inputs, batch.targets["labels"])) for batches in (train, test))
history = model.fit(train, epochs=2, steps_per_epoch=6, validation_data=test, verbose=0)
assert model.optimizer.iterations.numpy() == 12 and len(history.history["val_accuracy"]) == 2
expected = (model(images, training=False).numpy().argmax(axis=1) == labels).mean()
accuracy = model.evaluate(test, verbose=0)[1]
assert abs(accuracy - expected) < 1e-6, (accuracy, expected)
"""


@pytest.mark.slow
def test_two_devices_share_every_batch_and_fit_runs() -> None:
    # In a process of its own, because the CPU can be divided only before TensorFlow's first step.
    command = [sys.executable, "-c", TWO_DEVICES]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
