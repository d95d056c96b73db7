"""Learning from a teacher (Hinton, Vinyals and Dean, arXiv:1503.02531): its logits, and the distance from them."""

import contextlib
import functools
import io
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import DistillationConfig, RunConfig, TeacherView
from cifar_keras.data.augmentation import is_flip_alone
from cifar_keras.data.pipeline import Batch, Examples
from cifar_keras.errors import UserError
from cifar_keras.exporting.saved_model import check_classes, load_saved_model
from cifar_keras.files import paths, writing
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.inference import predict_all

# uint8 images [n, height, width, 3] -> the teacher's logits, float32 [n, classes]
Ask = Callable[[tf.Tensor], tf.Tensor]


class Teacher:
    """The classifier of a finished run, which another network learns from.

    It looks at the view of an image that the student looks at (Beyer et al., arXiv:2106.05237, section 3.1). Where there are at most
    two views of an image, the image and its mirror image, it is asked about each once, ahead; otherwise in every step.

    Args:
        config: of the student's run.
        folder: where its logits are kept, so that a run that goes on does not compute them again.
        strategy: of the student's run.
    """

    def __init__(self, config: RunConfig, folder: Path, strategy: tf.distribute.Strategy) -> None:
        self._config, self._folder, self._strategy = config, folder, strategy
        self._networks: dict[str, keras.Model] = {}
        wanted, augmentation = config.distillation.teacher_view, config.augmentation
        self.is_asked_in_steps = wanted is TeacherView.AUGMENTED and not is_flip_alone(augmentation)

        self._served: tf.Module | None = None

    def check_is_there(self) -> None:
        """Check that it can be asked; a teacher all of whose logits are kept need not be there any more.

        Raises:
            UserError: it cannot.
        """
        if not self.is_asked_in_steps and all(self._file(name).is_file() for name in ("train", "validation")):
            return
        self._served = load_saved_model(self._path, "teacher")
        if not (self._path / paths.MODEL).is_file():
            raise UserError(
                f"--teacher has to name the workdir of a finished run, with {paths.MODEL}. Received: {self._path}"
            )

    def check_classes(self, class_names: tuple[str, ...]) -> None:
        """Check that it tells these classes apart, if `check_is_there` looked at it.

        Raises:
            UserError: it tells others apart.
        """
        if self._served is not None:
            check_classes(self._served, class_names, self._path, "teacher")

    def beside(self, examples: Examples, name: str, compute_dtype: str) -> Examples:
        """Put its logits beside the labels.

        Args:
            examples: images.
            name: of the split: train gets logits of each view, `[n, views, classes]`, validation of the image, `[n, classes]`.
            compute_dtype: of its activations.
        """
        logits = self._kept(name)
        if logits is None:
            logits = self._ask_all(np.asarray(examples.inputs), name, compute_dtype)
            content = io.BytesIO()
            np.save(content, logits, allow_pickle=False)
            self._folder.mkdir(exist_ok=True)
            writing.write_whole(self._file(name), content.getvalue())
        with tf.device("CPU"):
            teacher = tf.identity(tf.convert_to_tensor(logits))
        return examples._replace(targets={**examples.targets, "teacher": teacher})

    def ask(self, compute_dtype: str) -> Ask:
        """Return the function that a training step calls for its logits."""
        return functools.partial(self._network(compute_dtype), training=False)

    @functools.cached_property
    def _path(self) -> Path:
        return paths.expand_model("teacher", self._config.distillation.teacher)

    def _file(self, name: str) -> Path:
        return self._folder / f"teacher_{name}.npy"

    def _kept(self, name: str) -> NDArray[np.float32] | None:
        # The file may be missing, or cut off.
        with contextlib.suppress(OSError, ValueError):
            kept: NDArray[np.float32] = np.load(self._file(name))
            return kept
        return None

    def _network(self, compute_dtype: str) -> keras.Model:
        """Load its classifier, as a fused twin for inference."""
        if compute_dtype not in self._networks:
            with self._strategy.scope():
                classifier = keras.models.load_model(self._path / paths.MODEL, compile=False)
                twin = fused_twin(classifier.get_layer("backbone"), compute_dtype=compute_dtype, folded=True)
                network = assemble(classifier, twin)
            network.trainable = False
            self._networks[compute_dtype] = network
        return self._networks[compute_dtype]

    def _ask_all(self, images: NDArray[np.uint8], name: str, compute_dtype: str) -> NDArray[np.float32]:
        both = self._config.distillation.teacher_view is TeacherView.PLAIN or (
            name == "train" and self._config.augmentation.flip
        )
        views = {f"teacher, {name}": images}
        if both:
            views[f"teacher, {name} mirrored"] = np.ascontiguousarray(images[:, :, ::-1])
        network, batch_size = self._network(compute_dtype), self._config.data.global_batch_size
        logits = np.stack([predict_all(network, view, batch_size, title) for title, view in views.items()], axis=1)
        if self._config.distillation.teacher_view is TeacherView.PLAIN:
            logits = logits.mean(axis=1, keepdims=True)
        return logits if name == "train" else logits[:, 0]


class Distillation:
    """How a student learns from its labels and its teacher (section 2): `(1 - w) * loss of the labels + w * distance`.

    Args:
        config: the weight w, and the temperature of the distance.
        ask: the teacher, for batches whose targets do not have its logits.
    """

    def __init__(self, config: DistillationConfig, ask: Ask | None = None) -> None:
        self._weight, self._ask = config.distillation_weight, ask
        self._distance = DistillationLoss(config.distillation_temperature)

    def add(self, from_labels: tf.Tensor, batch: Batch, logits: tf.Tensor) -> tf.Tensor:
        """Return the mean loss of a batch, from that of its labels and the student's logits."""
        if "teacher" in batch.targets:
            teacher = batch.targets["teacher"]
        elif self._ask is not None:
            teacher = self._ask(batch.inputs)
        else:
            raise ValueError("a batch has no teacher's logits, and there is nobody to ask")
        return (1 - self._weight) * from_labels + self._weight * self._distance(teacher, logits)


class DistillationLoss(keras.losses.Loss):
    """`T^2 * KL(teacher at temperature T, student at T)` (section 2): the gradients' scale does not depend on T.

    Args:
        temperature: T, by which the logits of both are divided.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__(name="distance")
        self._temperature = temperature

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the distance of each example, `[n]`, between the teacher's logits and the student's, `[n, classes]`."""
        teacher, student = y_true / self._temperature, y_pred / self._temperature
        ratio = tf.nn.log_softmax(teacher) - tf.nn.log_softmax(student)
        return self._temperature**2 * tf.reduce_sum(tf.nn.softmax(teacher) * ratio, axis=-1)
