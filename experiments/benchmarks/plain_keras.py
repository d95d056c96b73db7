"""Plain Keras: what its guide to transfer learning teaches, as a person would write it, with BatchNormalization really frozen."""

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks.cases import CLASSES, SOURCE_SIZE, Case, Runnable


class System:
    """keras.applications.ResNet50 in float32, or with the policy mixed_bfloat16."""

    def __init__(self, variant: str) -> None:
        keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[variant])

    def set_up(self, case: Case) -> Runnable:
        """Return a case, ready to run."""
        if case.work == "pipeline":
            return pipeline_of(_augmented(case.batch_size), case.batch_size)
        images, labels = some_examples(case.batch_size)
        # The guide's datasets have float32 images too.
        images = images.astype(np.float32)
        model, base = _model(case.image_size)
        if case.work == "frozen_forward":
            return forward_of(keras.Model(model.input, model.layers[-1].input), images)
        if case.work == "inference":

            def predict(count: int) -> None:
                model.predict(np.tile(images, (count, 1, 1, 1)), batch_size=case.batch_size, verbose=0)

            return Runnable(predict, case.batch_size)
        base.trainable = case.work == "train_step"
        for layer in base.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        model.compile(
            optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        batches = _augmented(case.batch_size) if case.work == "head_phase" else repeated(images, labels)
        return Runnable(lambda count: seconds_of_fit(model, batches, count), case.batch_size)


def some_examples(count: int) -> tuple[Any, Any]:
    """Return uint8 noise `[count, 32, 32, 3]` and one-hot labels: what images show does not change the speed."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, SOURCE_SIZE, SOURCE_SIZE, 3), dtype=np.uint8)
    return images, np.eye(CLASSES, dtype=np.float32)[generator.integers(0, CLASSES, count)]


def forward_of(model: keras.Model, images: Any) -> Runnable:
    """Return a case that runs a model on one batch again and again.

    The batch is an argument of the function, so that nothing is computed ahead of time.
    """
    batch, forward = tf.constant(images), tf.function(lambda batch: model(batch, training=False))

    def run(count: int) -> None:
        for _ in range(count):
            forward(batch).numpy()

    return Runnable(run, len(images))


def seconds_of_fit(model: keras.Model, batches: tf.data.Dataset, steps: int) -> float:
    """Return the seconds of `steps` steps of `fit`, after a first step that is not timed.

    The time before and after these steps is negligible in a run of minutes. After a short run it is long, because the thread that tunes
    the input pipeline sleeps for up to half of the time.
    """
    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
    model.fit(batches, steps_per_epoch=1 + steps, callbacks=[clock], verbose=0)
    return ends[-1] - ends[0]


def pipeline_of(batches: tf.data.Dataset, batch_size: int) -> Runnable:
    """Return a case that takes batches and does nothing with them. Time starts with the first batch, as in `seconds_of_fit`."""

    def run(count: int) -> float:
        ends = [time.perf_counter() for _ in batches.take(1 + count)]
        return ends[-1] - ends[0]

    return Runnable(run, batch_size)


def repeated(images: Any, labels: Any) -> tf.data.Dataset:
    """Return a dataset that repeats one batch forever, so that no pipeline is measured."""
    return tf.data.Dataset.from_tensors((images, labels)).repeat()


def _model(image_size: int) -> tuple[keras.Model, keras.Model]:
    base = keras.applications.ResNet50(
        weights=None, include_top=False, pooling="avg", input_shape=(image_size, image_size, 3)
    )
    inputs = keras.Input((SOURCE_SIZE, SOURCE_SIZE, 3))
    outputs = keras.layers.Resizing(image_size, image_size, name="resize")(inputs)
    outputs = keras.applications.resnet.preprocess_input(outputs)
    outputs = keras.layers.Dense(CLASSES, dtype="float32")(base(outputs, training=False))
    return keras.Model(inputs, outputs), base


def _augmented(batch_size: int) -> tf.data.Dataset:
    images, labels = some_examples(8192)
    augment = keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomTranslation(0.125, 0.125),
            keras.layers.RandomBrightness(0.2),
            keras.layers.RandomContrast(0.2),
        ]
    )
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().shuffle(8192).batch(batch_size)
    augmented = batches.map(lambda x, y: (augment(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
    return augmented.prefetch(tf.data.AUTOTUNE)
