"""The system `ours`: this package, as a run uses it."""

import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifar_keras.config import AugmentationConfig, ComputeDtype, FinetuneConfig, HeadConfig, KernelGradientChoice
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.pipeline import Examples, to_examples, training_batches
from cifar_keras.data.types import LabelledImages
from cifar_keras.exporting import saved_model
from cifar_keras.models.classifier import assemble, build_backbone, build_classifier
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.partition import partition
from cifar_keras.training.compute import choose_compute_dtype, choose_kernel_gradients
from cifar_keras.training.features import choose_view, compute_features
from cifar_keras.training.fit import Learner, compile_phase, set_trainable
from cifar_keras.training.phases import finetune_phase, head_phase
from experiments.benchmarks.cases import CLASSES, HEAD_EPOCHS, Case, Runnable
from experiments.benchmarks.plain_keras import forward_of, pipeline_of, seconds_of_fit, some_examples

HEAD_BATCHES = 64
JITTER = AugmentationConfig(flip=True, crop_padding=4, color_jitter=0.2)


class System:
    """The fused twin, in a compute dtype or in the one that `--compute_dtype=auto` chooses."""

    def __init__(self, variant: str) -> None:
        self._dtype, _ = choose_compute_dtype(ComputeDtype(variant), deterministic=False)

    def set_up(self, case: Case) -> Runnable:
        """Return a case, ready to run."""
        if case.work == "pipeline":
            return pipeline_of(_augmented(case.batch_size), case.batch_size)
        classifier = build_classifier(build_backbone("resnet50", case.image_size), "caffe", CLASSES, 0.0, 0)
        images, _ = some_examples(case.batch_size)
        if case.work == "inference":
            return _inference(classifier, images)
        if case.work == "head_phase":
            return self._head_phase(classifier, case)
        backbone = classifier.get_layer("backbone")
        set_trainable(classifier, "")
        if case.work == "frozen_forward":
            twin = fused_twin(backbone, compute_dtype=self._dtype, folded=True)
            return forward_of(assemble(classifier, twin, last="backbone"), images)
        model = Learner(assemble(classifier, fused_twin(backbone, compute_dtype=self._dtype)))
        choose_kernel_gradients(model, KernelGradientChoice.AUTO, self._dtype, case.batch_size)
        compile_phase(
            model,
            finetune_phase(FinetuneConfig(epochs=1), 1000, image_size=case.image_size),
            tf.distribute.get_strategy(),
        )
        batches = _augmented(case.batch_size)
        return Runnable(lambda count: seconds_of_fit(model, batches, count), case.batch_size)

    def _head_phase(self, classifier: keras.Model, case: Case) -> Runnable:
        """Return a whole head phase: features of the images and their mirror images, then ten epochs of training on them.

        The beginning of a phase takes seconds. That is little of a real phase, but most of a phase shorter than `HEAD_BATCHES`.
        """
        set_trainable(classifier, None)
        parts = partition(classifier, compute_dtype=self._dtype, image_size=case.image_size)
        assert parts is not None

        def run(count: int) -> float:
            started, batches_seen = time.perf_counter(), max(count, HEAD_BATCHES)
            train = _examples(batches_seen * case.batch_size)
            settings: dict[str, Any] = {"dtype": self._dtype, "batch_size": case.batch_size, "title": "features"}
            features = compute_features(parts.frozen, train, mirrored=True, **settings)
            learner = Learner(parts.trainable)
            compile_phase(
                learner,
                head_phase(HeadConfig(), batches_seen, image_size=case.image_size),
                tf.distribute.get_strategy(),
            )
            batches = training_batches(
                features,
                global_batch_size=case.batch_size,
                steps_per_epoch=batches_seen,
                seed=0,
                steps=range(HEAD_EPOCHS * batches_seen),
                augment=choose_view,
            )
            learner.fit(batches, epochs=HEAD_EPOCHS, steps_per_epoch=batches_seen, verbose=0)
            return (time.perf_counter() - started) * count / batches_seen

        return Runnable(run, HEAD_EPOCHS * case.batch_size)


def _examples(count: int) -> Examples:
    images, _ = some_examples(count)
    return to_examples(LabelledImages(images, np.arange(count) % CLASSES), CLASSES)[0]


def _augmented(batch_size: int) -> tf.data.Dataset:
    """Return augmented batches, enough for longer than anybody waits."""
    examples = _examples(8192)
    return training_batches(
        examples,
        global_batch_size=batch_size,
        steps_per_epoch=examples.total // batch_size,
        seed=0,
        steps=range(10_000 * (examples.total // batch_size)),
        augment=make_augmentation(JITTER),
    )


def _inference(classifier: keras.Model, images: Any) -> Runnable:
    folder = Path(tempfile.mkdtemp()) / "saved_model"
    saved_model.export_saved_model(classifier, CLASS_NAMES, folder)
    loaded = saved_model.load_saved_model(folder)

    def run(count: int) -> None:
        saved_model.serve_all(loaded, np.tile(images, (count, 1, 1, 1)), len(images), "inference")

    return Runnable(run, len(images))
