"""`python -m experiments.photographs RUN`: measure what smoothing is worth for images that are larger than the model's input.

Test images of a finished run are enlarged tenfold and get the grain of a photograph, so their labels are known. Four kinds of systems
classify them: the SavedModel, each export that takes any size, the same network without smoothing, and LiteRT. LiteRT takes one size, so
the images are shrunk for it first. The result is `experiments/results/photographs.json`, from which `python -m experiments.tables` makes
the table.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_keras import command, flags
from cifar_keras.data.datasets import is_prepared
from cifar_keras.evaluation.uncertainty import mean_interval
from cifar_keras.exporting.formats import FORMATS
from cifar_keras.exporting.runtimes import RUNTIMES
from cifar_keras.files import environment, writing
from cifar_keras.files.finished_run import FinishedRun, read_finished_run
from cifar_keras.files.progress_bar import progress

RESULT = Path(__file__).parent / "results" / "photographs.json"
IMAGES = 1000
ENLARGED = 10  # times each side
GRAIN = 30.0  # standard deviation of the noise of each pixel and colour, in levels of 255

# A function from one image, [height, width, 3], to its class.
Classify = Callable[[NDArray[np.uint8]], int]


def main(argv: Sequence[str]) -> None:
    """Measure the run that the command line names, and write the result."""
    run = read_finished_run(flags.parse_evaluate(["photographs", f"--model={''.join(argv[1:])}"]).model).with_data_dir(
        "", is_prepared
    )
    environment.load_keras()
    from cifar_keras.data.datasets import load_again

    test = load_again(run).test
    chosen = np.sort(np.random.default_rng(0).choice(len(test.labels), IMAGES, replace=False))
    images, labels = test.images[chosen], test.labels[chosen]
    systems = systems_of(run, side=images.shape[1])
    plain = run.logits[chosen].argmax(axis=1) == labels
    right: dict[str, list[bool]] = {name: [] for name in systems}
    for number, (image, label) in enumerate(
        zip(progress(images, desc="photographs", unit="image"), labels, strict=True)
    ):
        large = photograph(image, np.random.default_rng([0, number]))
        for name, classify in systems.items():
            right[name].append(classify(large) == label)
    rows = {"test images as they are": plain} | {name: np.array(values) for name, values in right.items()}
    content = {
        "commit": environment.source_commit(),
        "environment": environment.describe_environment(),
        "run": run.path.resolve().name,
        "rows": [row(name, values) for name, values in rows.items()],
    }
    writing.write_json(RESULT, content)


def photograph(image: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image, uint8 `[height, width, 3]`, with sides ten times as long and with grain."""
    height, width, _ = image.shape
    large = Image.fromarray(image).resize((ENLARGED * width, ENLARGED * height), Image.Resampling.BICUBIC)
    grainy = np.asarray(large) + generator.normal(0, GRAIN, (ENLARGED * height, ENLARGED * width, 3))
    return np.clip(np.rint(grainy), 0, 255).astype(np.uint8)


def systems_of(run: FinishedRun, *, side: int) -> dict[str, Classify]:
    """Return the systems that classify a photograph, by their names in the table."""
    import keras

    unsmoothed = keras.models.load_model(run.path / FORMATS["keras"].path, compile=False)
    unsmoothed.get_layer("resize").antialias = False
    systems: dict[str, Classify] = {
        "keras, without smoothing": lambda image: predict_one(unsmoothed.predict_on_batch, image)
    }
    for name, known in FORMATS.items():
        if (file := run.path / known.path).exists():
            logits = RUNTIMES[name][0](str(file))
            if known.any_size:
                systems[name] = functools.partial(predict_one, logits)
            else:
                systems[f"{name}, made {side} px first"] = functools.partial(predict_small, logits, side)
    return systems


def predict_one(logits: Callable[[NDArray[np.uint8]], Any], image: NDArray[np.uint8]) -> int:
    """Return the class that a model gives an image."""
    return int(np.asarray(logits(image[None])).argmax())


def predict_small(logits: Callable[[NDArray[np.uint8]], Any], side: int, image: NDArray[np.uint8]) -> int:
    """Return the class that a model gives an image, after Pillow has shrunk the image to the model's size, with smoothing."""
    return predict_one(logits, np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)))


def row(name: str, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the row of a system: its name, the number of images, and its accuracy with an interval."""
    interval = mean_interval(right.astype(np.float64), seed=0, highest=1.0)
    return {"system": name, "n": len(right), "accuracy": float(right.mean()), "interval": interval}


if __name__ == "__main__":
    command.run(main)
