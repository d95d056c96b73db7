"""Metrics that count each class the same, however many images it has, for the validation at the end of an epoch."""

import keras
import tensorflow as tf

from cifar_keras.config import ChooseBy


class MacroMetric(keras.metrics.Metric):
    """A metric that is computed from three counts of each class, which are kept instead of its value.

    So it is exact over all batches and devices. The counts are sums over the devices at the end of an epoch; within an epoch, each
    device knows its own images alone. float32 counts exactly up to 16,777,216 images of a class.

    Args:
        name: in the log.
        class_count: number of classes.
    """

    def __init__(self, name: str, class_count: int) -> None:
        super().__init__(name=name, dtype="float32")
        self._class_count = class_count
        self._hits, self._support, self._predictions = (
            self.add_variable((class_count,), "zeros", dtype="float32", name=counted)
            for counted in ("hits", "support", "predictions")
        )

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        """Count a batch.

        Args:
            y_true: probabilities of the labels, float32 `[n, classes]`; the largest is the true class.
            y_pred: logits, float32 `[n, classes]`.
            sample_weight: not used: every image counts 1.
        """
        # One-hot rows that are summed, because TensorFlow's weighted `bincount` is not deterministic on a GPU.
        true, predicted = (tf.one_hot(tf.argmax(values, axis=-1), self._class_count) for values in (y_true, y_pred))
        for counts, rows in ((self._hits, true * predicted), (self._support, true), (self._predictions, predicted)):
            counts.assign_add(tf.reduce_sum(rows, axis=0))


class BalancedAccuracy(MacroMetric):
    """The mean recall of the classes that occur (scikit-learn's `balanced_accuracy_score`), 0..1."""

    def result(self) -> tf.Tensor:
        """Return the metric, a float32 scalar; 0 before the first batch."""
        support = tf.convert_to_tensor(self._support)
        recall = tf.convert_to_tensor(self._hits) / tf.maximum(support, 1.0)
        occurring = tf.reduce_sum(tf.cast(support > 0, tf.float32))
        return tf.reduce_sum(recall) / tf.maximum(occurring, 1.0)


class MacroF1(MacroMetric):
    """The mean F1 of all classes (scikit-learn's `f1_score(average="macro", zero_division=0)`), 0..1.

    Keras's own `F1Score` makes no prediction where the largest logit is 0, and adds 1e-7 to what it divides by.
    """

    def result(self) -> tf.Tensor:
        """Return the metric, a float32 scalar; 0 before the first batch."""
        both = tf.convert_to_tensor(self._support) + tf.convert_to_tensor(self._predictions)
        return tf.reduce_mean(2 * tf.convert_to_tensor(self._hits) / tf.maximum(both, 1.0))


def macro_metrics(choose_by: ChooseBy, class_count: int) -> list[keras.metrics.Metric]:
    """Return what an epoch has to measure in addition to accuracy and cross-entropy, so that `choose_by` can choose."""
    kinds = {ChooseBy.BALANCED_ACCURACY: BalancedAccuracy, ChooseBy.MACRO_F1: MacroF1}
    return [kinds[choose_by](str(choose_by), class_count)] if choose_by in kinds else []
