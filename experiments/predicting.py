"""`python -m experiments.predicting RUN...`: how fast `predict` classifies files, beside the forward passes alone.

For each run, and for two kinds of files: the speed of `classify`, which reads and decodes the files, and of the SavedModel's `serve`,
which gets the same pixels in the same batches from memory. Both are measured in turn, several times; the ratio is that of each pair. The
last column is the largest difference between a probability of `classify` and of `serve_bytes` for the file alone.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifar_keras.files import environment

# Files of each kind, and their height, width and suffix. The large ones are as large as those of ImageNet.
KINDS = {"small": (640, 32, 32, ".png"), "photographs": (320, 375, 500, ".jpg")}
PAIRS = 5
COMPARED = 64  # files


def main() -> None:
    """Print a line for each run and kind of files."""
    environment.load_keras()
    from cifar_keras.exporting.saved_model import load_saved_model

    print("run  files  images/s of predict  of serve  slower by, mean of pairs (each)  difference")
    for run in sys.argv[1:]:
        model = load_saved_model(Path(run))
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                print(run, kind, *measure(model, Path(folder), kind), sep="  ", flush=True)


def measure(model: Any, folder: Path, kind: str) -> tuple[str, ...]:
    """Return the cells of a row, for files that are written into a folder."""
    import tensorflow as tf

    from cifar_keras.exporting.classify import BATCH_PIXELS, BATCH_SIZE, classify

    count, height, width, suffix = KINDS[kind]
    files = write_files(folder, count, height, width, suffix)
    together = min(BATCH_SIZE, BATCH_PIXELS // (height * width))
    images = tf.constant(np.stack([np.asarray(Image.open(file)) for file in files[:together]]))

    def predict() -> None:
        assert sum(1 for _ in classify(model, files)) == count

    def serve() -> None:
        for _ in range(count // together):
            model.serve(images)["probabilities"].numpy()

    for work in (predict, serve):
        work()  # build and warm up
    pairs = [(seconds(predict) / count, seconds(serve) / (count // together * together)) for _ in range(PAIRS)]
    ratios = [files_time / serve_time for files_time, serve_time in pairs]
    alone = [
        model.serve_bytes(tf.constant([file.read_bytes()]))["probabilities"].numpy()[0] for file in files[:COMPARED]
    ]
    found = [row for _, row in classify(model, files[:COMPARED])]
    difference = max(float(np.abs(np.asarray(one) - other).max()) for one, other in zip(found, alone, strict=True))
    speeds = (f"{1 / np.mean(times):.0f}" for times in zip(*pairs, strict=True))
    each = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return (*speeds, f"{np.mean(ratios):.2f} ({each})", f"{difference:.1e}")


def write_files(folder: Path, count: int, height: int, width: int, suffix: str) -> list[Path]:
    """Write pictures of smoothed noise, each of another, and return their paths."""
    generator, files = np.random.default_rng(0), []
    for number in range(count):
        noise = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        files.append(folder / f"{number:05}{suffix}")
        noise.resize((width, height), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def seconds(work: Callable[[], None]) -> float:
    """Return how long some work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
