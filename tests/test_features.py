from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data.pipeline import Batch, Examples, Targets, evaluation_batches, to_examples, training_batches
from cifar_keras.data.types import LabelledImages
from cifar_keras.models.inference import BATCHES_AT_A_TIME, predict_all
from cifar_keras.training.features import choose_view, compute_features, features_gib, only_view

BATCH = 4
PART = BATCHES_AT_A_TIME * BATCH
COUNTS = [1, BATCH - 1, BATCH, 2 * BATCH + 3, PART, PART + 1, 2 * PART + BATCH + 2]


def noise(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)


def examples_of(count: int) -> Examples:
    return to_examples(LabelledImages(noise(count), np.arange(count) % 10), class_count=10)[0]


@pytest.fixture(scope="module")
def lower() -> keras.Model:
    """A convolution of pixels, whose random kernel tells left from right and up from down: features [n, 5, 4, 2]."""
    images = keras.Input((6, 6, 3), dtype="uint8")
    pixels = keras.layers.Rescaling(1 / 255)(images)
    return keras.Model(
        images, keras.layers.Conv2D(2, (2, 3), kernel_initializer=keras.initializers.RandomNormal())(pixels)
    )


@pytest.mark.parametrize("count", COUNTS)
def test_every_image_goes_through_the_model_once_in_order(lower: keras.Model, count: int) -> None:
    images = noise(count)
    predicted = predict_all(lower, images, BATCH, "title")
    assert predicted.dtype == np.float32
    assert predicted.shape == (count, 5, 4, 2)
    np.testing.assert_allclose(predicted, lower(images, training=False), rtol=1e-5, atol=1e-6)


class NotedSizes(keras.layers.Layer):
    """Passes batches on, and notes how many images each of them has."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def call(self, images: Any) -> Any:
        if isinstance(images, tf.Tensor) and tf.executing_eagerly():
            self.sizes.append(images.shape[0])
        return images


def test_the_model_is_given_whole_batches_only() -> None:
    """So that each of many devices gets an image in every step."""
    images, noted = keras.Input((6, 6, 3), dtype="uint8"), NotedSizes()
    model = keras.Model(images, keras.layers.Rescaling(1 / 255)(noted(images)))
    model.compile(run_eagerly=True)
    for count in COUNTS:
        noted.sizes.clear()
        predict_all(model, noise(count), BATCH, "title")
        assert noted.sizes == [BATCH] * -(-count // BATCH)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_features_are_those_of_the_image_and_of_its_mirror_image(
    lower: keras.Model, mirrored: bool, dtype: str
) -> None:
    examples = examples_of(PART + 3)
    made = compute_features(lower, examples, mirrored=mirrored, dtype=dtype, batch_size=BATCH, title="title")
    assert made.targets is examples.targets
    assert made.inputs.dtype == dtype
    assert made.inputs.shape == (PART + 3, 1 + mirrored, 5, 4, 2)
    images = np.asarray(examples.inputs)
    tolerance = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-9}[dtype]  # one unit in the last place
    for view, shown in enumerate([images, np.flip(images, axis=2)][: 1 + mirrored]):
        features = np.asarray(lower(np.ascontiguousarray(shown), training=False))
        np.testing.assert_allclose(
            tf.cast(np.asarray(made.inputs)[:, view], "float32"), features, rtol=tolerance, atol=1e-5
        )


def test_the_first_view_is_kept_where_nothing_is_chosen() -> None:
    examples = Examples(tf.reshape(tf.range(24), [4, 2, 3]), Targets(labels=tf.eye(4)))
    kept = only_view(examples)
    assert np.array_equal(np.asarray(kept.inputs), np.arange(24).reshape(4, 2, 3)[:, 0])
    assert kept.targets is examples.targets


def test_memory_is_count_times_size_of_the_features(lower: keras.Model) -> None:
    # 5 * 4 * 2 features of 4 bytes are 160 bytes; 2**23 of them 1.25 GiB.
    assert features_gib(lower, 2**23, "float32") == 1.25
    assert features_gib(lower, 2**23, "bfloat16") == features_gib(lower, 2**23, "float16") == 0.625
    made = compute_features(lower, examples_of(7), mirrored=True, dtype="bfloat16", batch_size=BATCH, title="title")
    assert features_gib(lower, 14, "bfloat16") * 2**30 == np.asarray(made.inputs).nbytes


def numbered(count: int, views: int) -> Examples:
    """Features that say of which image they are, and which view: float32 [count, views, 2]."""
    features = np.stack(np.meshgrid(np.arange(count), np.arange(views), indexing="ij"), axis=-1).astype(np.float32)
    return Examples(tf.constant(features), Targets(labels=tf.one_hot(np.arange(count) % 10, 10)))


def chosen_of(features: tf.Tensor, number: int) -> NDArray[np.float32]:
    """What is chosen of features by a key, and that the same is chosen of a teacher's logits."""
    batch = choose_view(Batch(features, Targets(labels=features[:, 0], teacher=features)), key(number))
    assert np.array_equal(batch.targets["teacher"], batch.inputs)
    assert np.array_equal(batch.targets["labels"], features[:, 0])
    return np.asarray(batch.inputs)


def key(number: int) -> tf.Tensor:
    return tf.constant([7, number], tf.int64)


def test_a_view_is_chosen_for_each_image_on_its_own_by_the_key() -> None:
    features = numbered(4000, 2).inputs
    tf.random.set_seed(1)
    chosen = chosen_of(features, 0)
    tf.random.set_seed(2)
    assert np.array_equal(chosen, chosen_of(features, 0))
    assert not np.array_equal(chosen, chosen_of(features, 1))
    assert np.array_equal(chosen[:, 0], np.arange(4000))  # of no other image
    # A fair coin: standard deviation 0.5 / sqrt(4000); and so is whether a neighbour shows the same.
    views = chosen[:, 1]
    assert set(views) == {0, 1}
    assert abs(views.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    assert abs((views[1:] == views[:-1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(3999)


def test_an_image_shows_either_view_from_batch_to_batch() -> None:
    features = numbered(3, 2).inputs
    views = np.stack([chosen_of(features, number)[:, 1] for number in range(400)])
    assert (np.abs(views.mean(axis=0) - 0.5) < 5 * 0.5 / np.sqrt(400)).all()
    assert len(np.unique(views, axis=0)) == 8  # images do not go together


def test_of_one_view_there_is_no_choice() -> None:
    features = np.asarray(numbered(50, 1).inputs)
    assert np.array_equal(chosen_of(features, 0), features[:, 0])


@pytest.mark.parametrize("views", [1, 2])
def test_batches_of_features_are_the_same_at_any_parallelism(views: int) -> None:
    def batches(parallel_calls: int) -> list[Batch]:
        dataset = training_batches(
            numbered(40, views),
            global_batch_size=8,
            steps_per_epoch=5,
            seed=3,
            steps=range(20 * 5),
            augment=choose_view,
            parallel_calls=parallel_calls,
        )
        return list(dataset.as_numpy_iterator())

    one, many = batches(1), batches(8)
    assert len(one) == len(many) == 100
    for left, right in zip(one, many, strict=True):
        assert np.array_equal(left.inputs, right.inputs)
        assert np.array_equal(left.targets["labels"], right.targets["labels"])
        assert np.array_equal(left.targets["labels"], np.eye(10)[left.inputs[:, 0].astype(int) % 10])
    seen = np.concatenate([features for features, _ in one]).reshape(20, 40, 2)
    assert all(np.array_equal(np.sort(epoch[:, 0]), np.arange(40)) for epoch in seen)
    assert len(np.unique(seen.reshape(-1, 2), axis=0)) == 40 * views


def test_features_are_evaluated_in_order() -> None:
    examples = numbered(21, 1)
    batches = list(evaluation_batches(only_view(examples), global_batch_size=8).as_numpy_iterator())
    assert [len(features) for features, _ in batches] == [8, 8, 5]
    assert np.array_equal(np.concatenate([features for features, _ in batches]), np.asarray(examples.inputs)[:, 0])
