"""Trains a small run in a folder, or goes on with it; run by `test_kills.py`. TensorFlow's variables are inherited from there.

`killed_program.py VIRTUAL_DEVICES FOLDER SECONDS TEACHER PICTURES [MOMENT NUMBER]`, of which TEACHER is the workdir of a finished run,
and PICTURES a folder of pictures, with its cache beside it, or empty: then the run learns from images in memory.

It kills itself, as `kill -9` does: after so many seconds of training, or at the NUMBER-th time that it comes by MOMENT. 0 seconds is
never. `moments.log` in the folder tells what it came by last.

At its end FOLDER/final.npz holds the weights, the optimizer's variables at the end of each phase, and the history.
"""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from picture_files import picture_config
from small_runs import BATCH, set_up_small, small_config, train_small

from cifar_keras.data.datasets import load_dataset
from cifar_keras.files import writing
from cifar_keras.training import checkpoints, fit, trainer
from cifar_keras.training.devices import make_strategy, set_up_devices
from cifar_keras.training.setup import ask_teacher
from cifar_keras.training.teacher import Teacher
from cifar_keras.training.tracking import RunLog

# With as much as there is to get wrong: weights that are pruned, a teacher, who is asked in each step of the finetune phase, weighted
# classes, and a metric that is computed from counts.
FLAGS = {
    "finetune_cached_features": False,
    "checkpoint_every_steps": 2,
    "deterministic": True,
    "finetune_sparsity": 0.5,
    "distillation_weight": 0.5,
    "class_weights": "auto",
    "choose_by": "macro_f1",
}
DROPOUT = 0.3  # whose seeds are part of the state


class Moments:
    """Writes down what the program comes by, and kills it at one of them."""

    def __init__(self, folder: Path, moment: str, number: int) -> None:
        self._log = os.open(folder / "moments.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._wanted = (moment, number)
        self._counts: Counter[str] = Counter()

    def come_by(self, moment: str) -> None:
        os.write(self._log, f"{moment}\n".encode())
        self._counts[moment] += 1
        if (moment, self._counts[moment]) == self._wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        def noted(*arguments: Any, **settings: Any) -> Any:
            self.come_by(before)
            result = function(*arguments, **settings)
            self.come_by(after)
            return result

        return noted


class NoteMoments(keras.callbacks.Callback):
    def __init__(self, moments: Moments) -> None:
        super().__init__()
        self._moments = moments

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._moments.come_by("step")

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._moments.come_by("validation")


def note_everything(folder: Path, moments: Moments) -> None:
    """Put the moments into the package's own functions, and keep the optimizer of a phase that ends."""
    patch, fit_phase = pytest.MonkeyPatch(), fit.fit_phase
    patch.setattr(np, "savez", moments.around(np.savez, "save", "arrays written"))
    patch.setattr(writing, "sync", moments.around(writing.sync, "synced", "saved"))

    def noted_fit(
        model: keras.Model, phase: Any, batches: Any, validation: Any, callbacks: Any, **settings: Any
    ) -> None:
        moments.come_by(f"{phase.name} phase")
        fit_phase(model, phase, batches, validation, [NoteMoments(moments), *callbacks], **settings)
        variables = checkpoints.read_variables(
            phase.name, checkpoints.named(model.optimizer, model.trainable_variables), tf.distribute.get_strategy()
        )
        with (folder / f"{phase.name}.part").open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **variables)
        (folder / f"{phase.name}.part").replace(folder / f"{phase.name}.npz")
        moments.come_by("phase ends")

    patch.setattr(trainer, "fit_phase", noted_fit)


def main() -> None:
    virtual_devices, folder, seconds = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    pictures, (moment, number) = sys.argv[5], (sys.argv[6], int(sys.argv[7])) if len(sys.argv) > 6 else ("", 0)
    set_up_devices(virtual_devices, deterministic=True)
    strategy = make_strategy(BATCH)
    config = small_config(**FLAGS, teacher=sys.argv[4])
    teacher = Teacher(config, folder, strategy)
    dataset = load_dataset(picture_config(f"folder:{pictures}", Path(f"{pictures}.cache"))) if pictures else None
    setup = ask_teacher(set_up_small(config, strategy, dropout=DROPOUT, dataset=dataset)._replace(teacher=teacher))
    log = RunLog(folder)
    note_everything(folder, Moments(folder, moment, number))
    if seconds:
        timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGKILL])
        timer.daemon = True
        timer.start()
    done = train_small(config, setup, log, folder)
    values = checkpoints.read_variables("classifier", checkpoints.numbered(setup.classifier.variables), strategy)
    for phase in ("head", "finetune"):
        values |= dict(np.load(folder / f"{phase}.npz"))
    for place, record in enumerate(log.records):
        for name in record.keys() - {"phase", "images_per_second"}:
            values[f"record/{place}/{name}"] = np.asarray(record[name])
    values["phases"] = np.asarray(list(done.progress.summaries))
    np.savez(folder / "final.npz", allow_pickle=False, **values)


if __name__ == "__main__":
    main()
