"""`python -m experiments.imbalance FOLDER`: measure what class weights do for a rare class.

The script writes CIFAR-10's first cats and dogs into FOLDER/pictures, 95 % and 5 % of the images of each split. It trains six runs by
the command: with and without `--class_weights=auto`, each with three seeds. The result is `experiments/results/imbalance.json`, from
which `python -m experiments.tables` makes the table.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifar_keras import compare
from cifar_keras.config import RunConfig
from cifar_keras.data.types import LabelledImages
from cifar_keras.errors import UserError
from cifar_keras.files import environment, writing
from cifar_keras.files.finished_run import FinishedRun, read_finished_run

RESULT = Path(__file__).parent / "results" / "imbalance.json"
COMMON, RARE = "cat", "dog"
# Images of the common class; of the rare one there is a nineteenth.
COUNTS = {"train": 1900, "test": 950}
SEEDS = (0, 1, 2)
FLAGS = (
    *("--backbone=resnet50", "--image_size=64", "--global_batch_size=32", "--choose_by=balanced_accuracy"),
    *("--head_epochs=10", "--finetune_epochs=1", "--finetune_learning_rate=0.001"),
)


def main(argv: Sequence[str]) -> None:
    """Write the pictures, train what is not trained yet, and write the result."""
    if len(argv) != 2:
        raise SystemExit(f"usage: python -m {__spec__.name} FOLDER")
    folder = Path(argv[1])
    environment.load_keras()
    write_pictures(folder / "pictures")
    runs = {weights: [train(folder, weights, seed) for seed in SEEDS] for weights in ("none", "auto")}
    content = {
        "commit": environment.source_commit(),
        "environment": environment.describe_environment(),
        "flags": list(FLAGS),
        "seeds": list(SEEDS),
        "test_images": len(runs["none"][0].labels),
        "rows": {weights: [measures_of(run) for run in each] for weights, each in runs.items()},
        "differences": [
            {name: each._asdict() for name, each in compare.differences(*pair).items()}
            for pair in zip(runs["none"], runs["auto"], strict=True)
        ],
    }
    writing.write_json(RESULT, content)
    print(f"written: {RESULT}")


def write_pictures(folder: Path) -> None:
    """Write the images as PNG files, SPLIT/CLASS/NUMBER.png, where they are not there yet."""
    from cifar_keras.data.datasets import load_published

    published = load_published(RunConfig())
    for split, common_count in COUNTS.items():
        labelled: LabelledImages = getattr(published, split)
        for name, count in ((COMMON, common_count), (RARE, common_count // 19)):
            chosen = np.flatnonzero(labelled.labels == published.class_names.index(name))[:count]
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for place in chosen.tolist():
                file = folder / split / name / f"{place:05d}.png"
                if not file.exists():
                    Image.fromarray(labelled.images[place]).save(file)


def train(folder: Path, weights: str, seed: int) -> FinishedRun:
    """Return a run of the command `train`, finished now or before."""
    workdir = folder / "runs" / f"{weights}-{seed}"
    flags = [f"--dataset=folder:{folder / 'pictures'}", f"--cache_dir={folder / 'cache'}", *FLAGS]
    flags += [f"--class_weights={weights}", f"--seed={seed}", f"--workdir={workdir}", "--resume=auto"]
    if subprocess.run([sys.executable, "-m", "cifar_keras.train", *flags], check=False).returncode:
        raise UserError(f"a run did not end. Received: {workdir}")
    return read_finished_run(workdir)


def measures_of(run: FinishedRun) -> dict[str, Any]:
    """Return the metrics of a run's test split that the table shows."""
    test, served = run.result["test"], run.result["calibration"]["test"]
    rare = test["per_class"][RARE]
    return {
        **{name: test[name] for name in compare.PAIRED},
        "rare_images": rare["support"],
        "rare_found": round(rare["recall"] * rare["support"]),
        "calibration_error": test["calibration_error"],
        "served_calibration_error": served["calibration_error"],
    }


if __name__ == "__main__":
    main(sys.argv)
