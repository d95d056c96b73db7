"""Learn from a teacher (Hinton, Vinyals and Dean, arXiv:1503.02531): the teacher's logits, and the student's distance from them."""

import contextlib
import functools
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import DistillationConfig, RunConfig, TeacherView
from cifar_keras.data.augmentation import is_flip_alone
from cifar_keras.data.pipeline import Batch, Examples
from cifar_keras.data.types import Images
from cifar_keras.errors import UserError, reason_of
from cifar_keras.exporting.saved_model import class_names_of, load_saved_model
from cifar_keras.files import paths, writing
from cifar_keras.models.classifier import assemble
from cifar_keras.models.cost import cost_of_classifier
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.inference import image_parts, predict_part

# A function from uint8 images [n, height, width, 3] to the teacher's logits, float32 [n, classes].
Ask = Callable[[tf.Tensor], tf.Tensor]


class Teacher:
    """The classifier of a finished run, from which another network, the student, learns.

    The teacher looks at the view of an image that the student looks at (Beyer et al., arXiv:2106.05237, section 3.1). If an image has at
    most two views, itself and its mirror image, the teacher is asked about each view once, before training. Otherwise it is asked in
    every step.

    Args:
        config: the config of the student's run.
        folder: the folder that keeps the teacher's logits and the digest of its weights, for a resumed run.
        strategy: the strategy of the student's run.
    """

    def __init__(self, config: RunConfig, folder: Path, strategy: tf.distribute.Strategy) -> None:
        self._config, self._folder, self._strategy = config, folder, strategy
        self._plain = config.distillation.teacher_view is TeacherView.PLAIN
        self.is_asked_in_steps = not self._plain and not is_flip_alone(config.augmentation)
        self._class_names: tuple[str, ...] = ()
        self._networks: dict[str, keras.Model] = {}  # by the dtype of their activations

    def check_is_there(self) -> None:
        """Check that the teacher can be asked. If all of its logits are kept already, it need not exist any more.

        Raises:
            UserError: the teacher cannot be asked, or has other weights than when the run began.
        """
        if not self.is_asked_in_steps and all(self._kept(name) is not None for name in ("train", "validation")):
            return
        if not self._file.is_file():
            raise UserError(
                f"--teacher has to name the workdir of a finished run, with {paths.MODEL}. Received: {self._workdir}"
            )
        if self._known.is_file() and writing.read_json(self._known)["sha256"] != self._digest():
            raise UserError(f"--teacher has other weights than when the run began. Received: {self._workdir}")
        self._class_names = class_names_of(load_saved_model(self._workdir, "teacher"))
        self._network("float32")

    def check_classes(self, class_names: tuple[str, ...]) -> None:
        """Check that the teacher has these classes. Nothing is checked if `check_is_there` did not load the teacher.

        Raises:
            UserError: the teacher has other classes.
        """
        if self._class_names and self._class_names != class_names:
            raise UserError(
                f"--teacher tells other classes apart: {', '.join(self._class_names)}. Received: {self._workdir}"
            )

    def beside(self, examples: Examples, name: str) -> Examples:
        """Return examples whose targets have the teacher's logits, computed in float32, next to the labels.

        Args:
            examples: a split with images.
            name: name of the split. "train" gets the logits of each view, `[n, views, classes]`. "validation" gets the logits of the
                image, `[n, classes]`.

        Raises:
            UserError: a logit is not finite.
        """
        logits = self._kept(name)
        if logits is None or len(logits) != examples.total:
            logits = self._ask_all(examples.images, name)
            content = io.BytesIO()
            np.save(content, logits, allow_pickle=False)
            self._folder.mkdir(exist_ok=True)
            known = {"sha256": self._digest(), "forward_operations": self.forward_operations}
            writing.write_json(self._known, known)
            writing.write_whole(self._kept_file(name), content.getvalue())
        with tf.device("CPU"):
            teacher = tf.identity(tf.convert_to_tensor(logits))
        return examples._replace(targets={**examples.targets, "teacher": teacher})

    @functools.cached_property
    def forward_operations(self) -> int:
        """The teacher's floating point operations for one image."""
        if self._file.is_file():
            return cost_of_classifier(self._classifier).forward
        return int(writing.read_json(self._known)["forward_operations"])

    def operations_ahead(self, totals: Mapping[str, int]) -> int:
        """Return the operations of all answers that are kept.

        Args:
            totals: the number of images of each split, "train" and "validation".
        """
        images = [self._views(name) * total for name, total in totals.items() if self._kept_file(name).is_file()]
        return self.forward_operations * sum(images) if images else 0

    def ask(self, compute_dtype: str) -> Ask:
        """Return the function that a training step calls for the teacher's logits. Its activations have the dtype `compute_dtype`."""
        network = self._network(compute_dtype)
        return lambda images: tf.stop_gradient(network(images, training=False))

    @functools.cached_property
    def _workdir(self) -> Path:
        return paths.expand_model("teacher", self._config.distillation.teacher)

    @property
    def _file(self) -> Path:
        return self._workdir / paths.MODEL

    @property
    def _known(self) -> Path:
        return self._folder / "teacher.json"

    def _views(self, name: str) -> int:
        """Return how many views of each image of a split the teacher is asked about."""
        return 2 if self._plain or (name == "train" and self._config.augmentation.flip) else 1

    def _digest(self) -> str:
        with self._file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _kept_file(self, name: str) -> Path:
        return self._folder / f"teacher_{name}.npy"

    def _kept(self, name: str) -> NDArray[np.float32] | None:
        # The file may be missing, empty, or cut off.
        with contextlib.suppress(OSError, ValueError, EOFError):
            kept: NDArray[np.float32] = np.load(self._kept_file(name))
            return kept
        return None

    @functools.cached_property
    def _classifier(self) -> keras.Model:
        with self._strategy.scope():
            return keras.models.load_model(self._file, compile=False)

    def _network(self, compute_dtype: str) -> keras.Model:
        """Return the teacher's classifier as a fused twin for inference. It is made once for each dtype.

        Raises:
            UserError: the file cannot be read, or is no classifier of a run.
        """
        if compute_dtype in self._networks:
            return self._networks[compute_dtype]
        with self._strategy.scope():
            try:
                classifier = self._classifier
                twin = fused_twin(classifier.get_layer("backbone"), compute_dtype=compute_dtype, folded=True)
                network = assemble(classifier, twin)
            except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
                raise UserError(f"--teacher cannot be loaded: {reason_of(error)}. Received: {self._file}") from error
        network.trainable = False
        self._networks[compute_dtype] = network
        return network

    def _ask_all(self, images: Images, name: str) -> NDArray[np.float32]:
        network, batch_size = self._network("float32"), self._config.data.global_batch_size
        parts = []
        for part in image_parts(images, batch_size, f"teacher, {name}"):
            views = [part, part[:, :, ::-1]][: self._views(name)]
            parts.append(np.stack([predict_part(network, view, batch_size) for view in views], axis=1))
        logits = np.concatenate(parts)
        if not np.isfinite(logits).all():
            raise UserError(f"--teacher gives logits that are not finite. Received: {self._workdir}")
        if self._plain:
            logits = logits.mean(axis=1, keepdims=True)
        return logits if name == "train" else logits[:, 0]


class Distillation:
    """The loss of a student with labels and a teacher (section 2): `(1 - w) * loss of the labels + w * distance`.

    Args:
        config: settings with the weight w and the temperature of the distance.
        ask: the teacher, for batches whose targets do not have its logits.
    """

    def __init__(self, config: DistillationConfig, ask: Ask | None = None) -> None:
        self._weight, self._ask = config.distillation_weight, ask
        self._distance = DistillationLoss(config.distillation_temperature)

    def add(self, from_labels: tf.Tensor, batch: Batch, logits: tf.Tensor) -> tf.Tensor:
        """Return the mean loss of a batch, given the mean loss of its labels and the student's logits."""
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
