"""`python -m experiments.large_set FOLDER --gigabytes 20`: train from a set of pictures that is larger than memory, and measure it.

The script draws JPEG files into FOLDER/pictures, decodes them into FOLDER/cache, and measures in processes of their own: the memory and
the images/s of the input pipeline alone, and of training steps of a ResNet50. The result is `experiments/results/large_set.json`, from
which `python -m experiments.tables` makes the table.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_keras.config import RunConfig, from_values
from cifar_keras.files import environment, writing
from experiments.drawn_pictures import CLASSES, SIDE, draw_pictures

RESULT = Path(__file__).parent / "results" / "large_set.json"
IMAGE_SIZE = 224  # pixels, to which the network resizes them
BATCH_SIZE = 32
PIPELINE_BATCHES = 500
WARM_UP_STEPS, TIMED_STEPS = 2, 6


def main(argv: Sequence[str]) -> None:
    """Draw the pictures that are not there yet, measure, and write the result."""
    arguments = make_parser().parse_args(argv[1:])
    if arguments.measure:
        print(json.dumps(measure(arguments.folder, arguments.measure)))
        return
    count = round(arguments.gigabytes * 1e9 / (SIDE * SIDE * 3))
    draw_pictures(arguments.folder / "pictures", count)
    measured = [measure_alone(arguments.folder, part) for part in ("load", "pipeline", "training")]
    content = {
        "commit": environment.source_commit(),
        "environment": environment.describe_environment(),
        "pictures": count,
        "decoded_bytes": count * SIDE * SIDE * 3,
        "rows": measured,
    }
    writing.write_json(RESULT, content)
    print(f"written: {RESULT}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="experiments.large_set", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for the pictures and the cache; both stay there")
    parser.add_argument("--gigabytes", type=float, default=20.0, help="size of the decoded pictures, in 10^9 bytes")
    parser.add_argument("--measure", choices=("load", "pipeline", "training"), help=argparse.SUPPRESS)
    return parser


def measure_alone(folder: Path, part: str) -> dict[str, Any]:
    """Return what a process of its own measures, so that its memory is that of this part."""
    program = [sys.executable, "-m", "experiments.large_set", str(folder), "--measure", part]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def config_of(folder: Path) -> RunConfig:
    """Return the config of a run on the pictures."""
    return from_values(
        {
            "dataset": f"folder:{folder / 'pictures'}",
            "cache_dir": str(folder / "cache"),
            "image_size": IMAGE_SIZE,
            "weights": "none",
            "global_batch_size": BATCH_SIZE,
        }
    )


def measure(folder: Path, part: str) -> dict[str, Any]:
    """Return what a part takes: the seconds until the pictures are loaded, its images/s, and the peak of the memory in GiB."""
    environment.load_keras()
    from cifar_keras.data.augmentation import make_augmentation
    from cifar_keras.data.datasets import load_dataset
    from cifar_keras.data.pipeline import to_examples, training_batches

    config = config_of(folder)
    before, started = environment.peak_gib(), time.monotonic()
    dataset = load_dataset(config)
    loading, speed = time.monotonic() - started, None
    if part != "load":
        examples, _ = to_examples(dataset.train, CLASSES)
        batches = training_batches(
            examples,
            global_batch_size=BATCH_SIZE,
            steps_per_epoch=len(dataset.train.labels) // BATCH_SIZE,
            steps=range(PIPELINE_BATCHES if part == "pipeline" else WARM_UP_STEPS + TIMED_STEPS),
            seed=0,
            augment=make_augmentation(config.augmentation),
        )
        speed = pipeline_speed(batches) if part == "pipeline" else training_speed(config, batches)
    return {
        "part": part,
        "seconds_to_load": loading,
        "images_per_second": speed,
        "imports_gib": before,
        "peak_gib": environment.peak_gib(),
    }


def pipeline_speed(batches: Any) -> float:
    """Return the images/s of the batches after the first one."""
    times = [time.monotonic() for _ in batches]
    return BATCH_SIZE * (len(times) - 1) / (times[-1] - times[0])


def training_speed(config: RunConfig, batches: Any) -> float:
    """Return the images/s of training steps of the whole network."""
    import keras
    import tensorflow as tf

    from cifar_keras.models.classifier import assemble, make_classifier
    from cifar_keras.models.fused import fused_twin
    from cifar_keras.training.compute import choose_compute_dtype
    from cifar_keras.training.fit import Learner, compile_phase, set_trainable
    from cifar_keras.training.phases import plan_phases

    dtype, _ = choose_compute_dtype(config.compute.compute_dtype, deterministic=False)
    classifier = make_classifier(config.model, CLASSES, seed=0, timeout_seconds=config.source_timeout_seconds)
    set_trainable(classifier, "")
    twin = fused_twin(classifier.get_layer("backbone"), compute_dtype=dtype, input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3))
    model = Learner(assemble(classifier, twin))
    _, finetune = plan_phases(config, BATCH_SIZE * (WARM_UP_STEPS + TIMED_STEPS))
    compile_phase(model, finetune, tf.distribute.get_strategy(), compute_dtype=dtype)
    ends: list[float] = []
    note_time = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.monotonic()))
    model.fit(batches, steps_per_epoch=WARM_UP_STEPS + TIMED_STEPS, callbacks=[note_time], shuffle=False, verbose=0)
    return BATCH_SIZE * TIMED_STEPS / (ends[-1] - ends[WARM_UP_STEPS - 1])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main(sys.argv)
