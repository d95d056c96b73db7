"""The speed that the machine's matrix products would allow: their rate, divided by the model's floating-point operations."""

import keras
import tensorflow as tf

from experiments.benchmarks.cases import Case, NotMeasuredError, Runnable

SIDE = 3072  # of square matrices, large enough for the highest rate


class System:
    """TensorFlow's matmul in float32 or bfloat16."""

    def __init__(self, variant: str) -> None:
        self._matrix = tf.cast(tf.random.normal([SIDE, SIDE]), variant)
        self._multiply = tf.function(lambda: tf.matmul(self._matrix, self._matrix)[0, 0])

    def set_up(self, case: Case) -> Runnable:
        """Return a case, ready to run.

        A training step counts as three forward passes, because each of its two gradients costs as much as the forward convolution.
        """
        if case.work not in ("frozen_forward", "train_step"):
            raise NotMeasuredError("not made of matrix products alone")
        operations = forward_operations(case.image_size) * (3 if case.work == "train_step" else 1)

        def run(count: int) -> None:
            for _ in range(count):
                self._multiply().numpy()

        return Runnable(run, 2 * SIDE**3 / operations)


def forward_operations(image_size: int) -> float:
    """Return the number of multiplications and additions of ResNet50's convolutions for one image."""
    base = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(image_size, image_size, 3))
    total = 0
    for layer in base.layers:
        if isinstance(layer, keras.layers.Conv2D):
            _, height, width, _ = layer.output.shape
            total += 2 * height * width * layer.kernel.shape.num_elements()
    return total
