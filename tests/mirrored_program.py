"""Trains the small network and saves its weights; run by `test_devices.py`, since devices are set once a process. TensorFlow's
variables are inherited from there.

`mirrored_program.py VIRTUAL_DEVICES TRAIN_BATCH_NORM DETERMINISTIC OUTPUT.npz`
"""

import sys

import keras
import numpy as np
from sklearn.metrics import f1_score
from small_networks import small_backbone

from cifar_keras.config import AugmentationConfig, ChooseBy, FinetuneConfig, HeadConfig
from cifar_keras.data import synthetic
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pipeline import evaluation_batches, to_examples, training_batches
from cifar_keras.data.types import LabelledImages
from cifar_keras.models.classifier import assemble, build_classifier
from cifar_keras.models.fused import fused_twin
from cifar_keras.training.devices import make_strategy, set_up_devices
from cifar_keras.training.fit import Learner, compile_phase, fit_phase, set_trainable
from cifar_keras.training.phases import finetune_phase, head_phase


def main() -> None:
    virtual_devices, train_batch_norm, deterministic = (int(argument) for argument in sys.argv[1:4])
    set_up_devices(virtual_devices, deterministic=bool(deterministic))
    keras.utils.set_random_seed(5)
    images, labels = synthetic.make_dataset(0).train
    strategy = make_strategy(global_batch_size=40)
    with strategy.scope():
        classifier = build_classifier(small_backbone(), "caffe", class_count=10, dropout=0.0, seed=0)
    finetune = FinetuneConfig(epochs=1, learning_rate=0.05, train_batch_norm=bool(train_batch_norm))
    phases = (
        head_phase(HeadConfig(), 10, image_size=16),
        finetune_phase(finetune, 10, image_size=16, first_epoch=1),
    )
    for phase in phases:
        set_trainable(
            classifier,
            phase.stages[0].learns_from,
            train_batch_norm=phase.train_batch_norm,
            synchronize=strategy.num_replicas_in_sync > 1,
        )
        with strategy.scope():
            twin = fused_twin(classifier.get_layer("backbone"), compute_dtype="float32")
            model = Learner(assemble(classifier, twin), class_weights=np.linspace(0.2, 1.8, 10, dtype=np.float32))
        compile_phase(model, phase, strategy, choose_by=ChooseBy.MACRO_F1)
        batches = training_batches(
            to_examples(LabelledImages(images, labels), class_count=10)[0],
            global_batch_size=40,
            steps_per_epoch=10,
            seed=0,
            steps=range(phase.first_epoch * 10, (phase.first_epoch + 1) * 10),
            augment=make_augmentation(AugmentationConfig()),
        )
        # 90 images: the last batch of 10 is smaller than the others.
        validation_split, _ = to_examples(LabelledImages(images[:90], labels[:90]), class_count=10)
        validation = evaluation_batches(validation_split, global_batch_size=40)
        fit_phase(model, phase, batches, validation, [])
        history = model.history.history
    logits = classifier.predict(images[:90], batch_size=40, verbose=0)
    values = {
        f"{number:03d} {variable.path}": np.asarray(variable) for number, variable in enumerate(classifier.variables)
    }
    copies = [
        np.stack([np.asarray(copy) for copy in strategy.experimental_local_results(variable.value)])
        for variable in classifier.variables
    ]
    largest_difference = max(float(np.abs(copy - copy[0]).max()) for copy in copies)
    values |= {
        "logits": logits,
        "macro_f1_by_scikit_learn": f1_score(
            labels[:90], logits.argmax(axis=1), labels=range(10), average="macro", zero_division=0
        ),
        "macro_f1": np.asarray([history["macro_f1"][-1], history["val_macro_f1"][-1]]),
        "replicas": np.asarray(strategy.num_replicas_in_sync),
        "copies": np.asarray(len(copies[0])),
        "largest_difference": np.asarray(largest_difference),
    }
    np.savez(sys.argv[4], allow_pickle=False, **values)


if __name__ == "__main__":
    main()
