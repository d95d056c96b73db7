"""Trains a small run with cached features in both phases; run by `test_tasks.py`, since devices are set once a process.
TensorFlow's variables are inherited from there.

`cached_program.py VIRTUAL_DEVICES FOLDER` writes FOLDER/values.npz.
"""

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from small_runs import BATCH, SHORT, set_up_small, small_config, train_small

from cifar_keras.training.devices import make_strategy, set_up_devices
from cifar_keras.training.features import compute_features
from cifar_keras.training.tracking import RunLog


def device_of_features() -> str:
    """Where a model computes its features that is called on the last device."""
    images = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(images)))
    predict, devices = model.predict, []

    def noted(*arguments: Any, **settings: Any) -> Any:
        devices.append(tf.random.uniform([1]).device)
        return predict(*arguments, **settings)

    model.predict = noted
    with tf.device(tf.config.list_logical_devices("CPU")[-1].name):
        train = set_up_small(small_config()).train
        compute_features(model, train, mirrored=False, dtype="float32", batch_size=train.total, title="title")
    return str(devices[0])


def main() -> None:
    virtual_devices, folder = int(sys.argv[1]), Path(sys.argv[2])
    set_up_devices(virtual_devices, deterministic=False)
    strategy = make_strategy(BATCH)
    config = small_config(**SHORT)
    setup = set_up_small(config, strategy)
    summaries = train_small(config, setup, RunLog(folder), folder).progress.summaries
    classifier = setup.classifier
    copies = [
        np.stack([np.asarray(copy) for copy in strategy.experimental_local_results(variable.value)])
        for variable in classifier.variables
    ]
    values = {f"weight {number}": np.asarray(variable) for number, variable in enumerate(classifier.variables)}
    values |= {
        "replicas": np.asarray(strategy.num_replicas_in_sync),
        "largest_difference": np.asarray(max(float(np.abs(copy - copy[0]).max()) for copy in copies)),
        "cached": np.asarray([summary.cached_features for summary in summaries.values()]),
        "device_of_features": np.asarray(device_of_features()),
    }
    np.savez(folder / "values.npz", allow_pickle=False, **values)


if __name__ == "__main__":
    main()
