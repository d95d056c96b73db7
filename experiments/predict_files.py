"""`python -m experiments.predict_files FOLDER`: measure `predict` on many files: its memory, its results, and its images/s.

The script draws JPEG files into FOLDER/pictures and exports a ResNet50 of 64 px with random weights into FOLDER/run. Then it measures:

- the peak of the memory of `predict --output` on a tenth of the files and on all of them, in processes of their own;
- the largest difference of a probability in that output from what `serve_bytes` gives for the file alone;
- how much longer files take than forward passes of the network on as many images that are decoded and resized. Both take turns, so that
  other work on the machine slows both.

The result is `experiments/results/predict_files.json`, from which `python -m experiments.tables` makes the table.
"""

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_keras import command
from cifar_keras.files import environment, writing
from cifar_keras.files.progress_bar import progress
from experiments.drawn_pictures import CLASSES, draw_pictures

RESULT = Path(__file__).parent / "results" / "predict_files.json"
IMAGE_SIZE = 64  # pixels, of the network
FORWARD_BATCH = 32
PAIRED_FILES = 10 * FORWARD_BATCH


def main(argv: Sequence[str]) -> None:
    """Draw what is not there yet, measure, and write the result."""
    arguments = make_parser().parse_args(argv[1:])
    files = draw_pictures(arguments.folder / "pictures", arguments.files)
    environment.load_keras()
    run = arguments.folder / "run"
    if not run.exists():
        export_model(run)
    content = {
        "commit": environment.source_commit(),
        "environment": environment.describe_environment(),
        "memory": [
            {"files": count} | memory_of(run, arguments.folder, files[:count], name)
            for name, count in (("a tenth", arguments.files // 10), ("all", arguments.files))
        ],
        "differences": differences(run, arguments.folder / "all.csv"),
        "speed": compare_speed(run, files, arguments.pairs),
    }
    writing.write_json(RESULT, content)
    print(f"written: {RESULT}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="experiments.predict_files", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for the pictures and the model; both stay there")
    parser.add_argument("--files", type=int, default=10_000, help="number of pictures")
    parser.add_argument(
        "--pairs", type=int, default=12, help="number of times that files and forward passes take turns"
    )
    return parser


def export_model(folder: Path) -> None:
    """Write the SavedModel of a ResNet50 with random weights, in its head too: a new head gives all classes the same probability."""
    from cifar_keras.exporting.saved_model import export_saved_model
    from cifar_keras.models.classifier import build_backbone, build_classifier

    classifier = build_classifier(build_backbone("resnet50", IMAGE_SIZE), "caffe", CLASSES, dropout=0, seed=0)
    kernel = classifier.get_layer("head").kernel
    kernel.assign(np.random.default_rng(0).normal(0, 0.1, kernel.shape))
    export_saved_model(classifier, [f"class {number}" for number in range(CLASSES)], folder / "saved_model")


def memory_of(run: Path, folder: Path, files: Sequence[Path], name: str) -> dict[str, Any]:
    """Return the peak of the memory, in GiB, and the seconds of `predict` on files, which are named by a list of links."""
    links = folder / f"links, {name}"
    links.mkdir(exist_ok=True)
    for file in files:
        if not (link := links / file.name).exists():
            link.hardlink_to(file)
    program = [sys.executable, "-m", "cifar_keras.predict", f"--model={run}", "--output"]
    start = time.monotonic()
    measured = subprocess.run(
        [sys.executable, "-c", PEAK, *program, str(folder / f"{name}.csv"), str(links)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peak = int(measured.stdout.splitlines()[-1])
    return {"peak_gib": round(peak / 2**20, 3), "seconds": round(time.monotonic() - start, 1)}


# The peak of the children of a process is that of the largest. So each command gets a process of its own to be a child of.
PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def differences(run: Path, table: Path) -> dict[str, Any]:
    """Return how far the probabilities and labels of a table are from what `serve_bytes` gives for each file alone."""
    import tensorflow as tf

    from cifar_keras.exporting.saved_model import class_names_of, load_saved_model

    model = load_saved_model(run)
    class_names = class_names_of(model)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    largest, other_labels = 0.0, 0
    for row in progress(rows, desc="serve_bytes", unit="file"):
        alone = model.serve_bytes(tf.constant([Path(row["filename"]).read_bytes()]))["probabilities"].numpy()[0]
        largest = max(largest, abs(float(alone.max()) - float(row["prob"])))
        other_labels += class_names[alone.argmax()] != row["label"]
    return {"rows": len(rows), "largest_difference": largest, "other_labels": other_labels}


def compare_speed(run: Path, files: Sequence[Path], pairs: int) -> dict[str, Any]:
    """Return the images/s of files and of forward passes, and the ratio of their times in each pair."""
    import tensorflow as tf

    from cifar_keras.evaluation.uncertainty import mean_interval
    from cifar_keras.exporting.classify import classify
    from cifar_keras.exporting.saved_model import load_saved_model

    model = load_saved_model(run)
    images = tf.constant(
        np.random.default_rng(0).integers(0, 256, (FORWARD_BATCH, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    )
    taken: list[tuple[float, float]] = []
    for pair in range(-1, pairs):  # the first warms both up
        start = time.monotonic()
        chosen = np.random.default_rng(pair + 1).choice(len(files), PAIRED_FILES, replace=False)
        for _ in classify(model, [files[number] for number in chosen]):
            pass
        between = time.monotonic()
        for _ in range(PAIRED_FILES // FORWARD_BATCH):
            model.serve(images)["probabilities"].numpy()
        if pair >= 0:
            taken.append((between - start, time.monotonic() - between))
    of_files, of_network = np.array(taken).T
    ratios = of_files / of_network
    return {
        "images_per_second_of_files": round(PAIRED_FILES / of_files.mean(), 1),
        "images_per_second_of_forward_passes": round(PAIRED_FILES / of_network.mean(), 1),
        "ratio": round(float(ratios.mean()), 3),
        "interval": mean_interval(ratios, seed=0),
        "ratios": ratios.round(3).tolist(),
    }


if __name__ == "__main__":
    command.run(main)
