"""`python -m cifar_keras.export --model=WORKDIR --format=onnx,litert`: convert a run's model, and prove that each export is that model."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_keras import command, flags
from cifar_keras.data.datasets import is_prepared
from cifar_keras.data.types import Images
from cifar_keras.errors import UserError
from cifar_keras.evaluation.uncertainty import mean_interval
from cifar_keras.exporting.formats import FORMATS, Bound
from cifar_keras.files import environment, paths, workdir, writing
from cifar_keras.files.finished_run import FinishedRun, check_found, read_finished_run

# Images that are in memory at a time.
PART = 1000


def main(argv: Sequence[str]) -> None:
    """Convert a run's model, run each export in its own runtime on all test images, and keep the exports that are within their bounds."""
    arguments = flags.parse_export(argv)
    run = read_finished_run(arguments.model).with_data_dir(arguments.data_dir, is_prepared)
    check_formats(arguments.formats, run.path)
    check_found(run.path)
    environment.load_keras()
    import tensorflow as tf

    # Leave the GPUs to the processes that run the exports; converting needs none.
    tf.config.set_visible_devices([], "GPU")
    from cifar_keras.data.datasets import load_again
    from cifar_keras.exporting.saved_model import check_classes, load_saved_model
    from cifar_keras.reporting import pages
    from cifar_keras.reporting.tables import exports_table

    model = load_saved_model(run.path)
    dataset = load_again(run)
    check_classes(model, dataset.class_names, arguments.model)
    exports = {}
    with workdir.claimed(run.path, "--model"), paths.scratch_folder(run.path) as scratch:
        save_images(dataset.test.images, scratch / "images.npy")
        try:
            for name in arguments.formats:
                exports[name] = export(
                    name, run, model, dataset, scratch, calibration_images=arguments.calibration_images
                )
                keep_export(name, exports[name], run.path)
        finally:
            # Also if one failed: report what was kept before it.
            print(exports_table(exports))
            pages.write_report_again(run, dataset)
    if outside := [name for name, found in exports.items() if not found["within_bounds"]]:
        sys.exit(
            "error: exports differ from the measured model by more than their formats allow. They are not listed, and converted "
            "files are not kept. "
            f"Received: {', '.join(outside)}"
        )


def save_images(images: Images, path: Path) -> None:
    """Write images as a NumPy file, `PART` at a time.

    The file is not mapped into memory, because a write to a mapped page of a full disk kills the process.
    """
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": images.shape})
        for start in range(0, len(images), PART):
            file.write(np.ascontiguousarray(images[start : start + PART]).data)


def export(
    name: str, run: FinishedRun, model: Any, dataset: Any, scratch: Path, *, calibration_images: int
) -> dict[str, Any]:
    """Return how an export compares with the model. The export is made first, and put into the workdir if it is within its bounds.

    Args:
        name: a key of `FORMATS`.
        run: the run.
        model: the run's SavedModel, loaded.
        dataset: the run's images.
        scratch: folder with `images.npy`, the test images.
        calibration_images: number of training images from which int8 takes its ranges. The run's seed draws them.

    Returns:
        The entry of the format in `exports.json`.
    """
    import keras

    from cifar_keras.exporting.conversion import convert

    place = run.path / FORMATS[name].path
    if FORMATS[name].converted:
        file = scratch / place.name
        chosen = np.random.default_rng(run.config.seed).permutation(len(dataset.train.labels))[:calibration_images]
        convert(
            name,
            keras.models.load_model(run.path / paths.MODEL, compile=False),
            file,
            examples=dataset.train.images[chosen],
            class_names=dataset.class_names,
            temperature=run.result["calibration"]["temperature"],
        )
    else:
        file = place
    float32_bytes = 4 * sum(int(np.prod(variable.shape)) for variable in model.signatures["serve"].variables)
    found = prove(name, file, scratch, run) | {"share_of_float32": size_of(file) / float32_bytes}
    if name == "litert_int8":
        found["calibration_images"] = len(chosen)
    if FORMATS[name].converted and found["within_bounds"]:
        place.parent.mkdir(exist_ok=True)
        writing.put_in_place(file, place)
    return found


def check_formats(names: Sequence[str], path: Path) -> None:
    """Check that the packages which the formats need are installed, and that the files which the run itself has written are there.

    Raises:
        UserError: something is missing.
    """
    if any(FORMATS[name].converted for name in names):
        paths.check_has_model(path)
    for name in names:
        if not FORMATS[name].converted and not (path / FORMATS[name].path).exists():
            raise UserError(f"--format={name}: the run has no {FORMATS[name].path} any more. Received: {path}")
        missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(
                f"--format={name} needs {', '.join(missing)}: `pip install '.[export]'`. Received: {','.join(names)}"
            )


def prove(name: str, file: Path, scratch: Path, run: FinishedRun) -> dict[str, Any]:
    """Return how an export compares with the run's predictions. Its own runtime runs it, in a process of its own.

    Args:
        name: a key of `FORMATS`.
        file: the export.
        scratch: folder with `images.npy`, the test images.
        run: the run. The export is compared with the predictions in its `predictions.npz`.

    Returns:
        The entry of the format in `exports.json`, except `share_of_float32`.

    Raises:
        UserError: the runtime's output cannot be written.
        RuntimeError: the runtime cannot run the export.
    """
    found = scratch / "logits.npz"
    program = [
        sys.executable,
        "-m",
        "cifar_keras.exporting.runtimes",
        name,
        str(file),
        str(scratch / "images.npy"),
        str(found),
    ]
    done = subprocess.run(
        program,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "KERAS_HOME": str(scratch)},
        check=False,
    )
    # The runtime has printed the reason.
    if done.returncode == command.BAD_INPUT_STATUS:
        raise UserError(f"--format={name}: what its runtime gives cannot be written. Received: {scratch.parent}")
    if done.returncode:
        raise RuntimeError(f"the runtime of {name} cannot run it. Received: status {done.returncode}")
    with np.load(found) as kept:
        compared = compare(kept["logits"], run.logits, run.labels, seed=run.config.seed)
        return {
            "path": FORMATS[name].path,
            "bytes": size_of(file),
            **compared,
            "within_bounds": is_within(compared, FORMATS[name].bound),
            "images_per_second": float(kept["images_per_second"]),
            "batch_size": int(kept["batch_size"]),
            "runtime": str(kept["runtime"]),
        }


def compare(
    logits: NDArray[np.float32], wanted: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int
) -> dict[str, Any]:
    """Return how the logits of an export, `[n, classes]`, compare with those that the run measured.

    Args:
        logits: of the export.
        wanted: of the run.
        labels: int64 `[n]`.
        seed: of the resamples. With the run's seed, an export with the same predictions has the run's interval.

    Returns:
        A dict with these keys, all values fractions:

        - `logit_difference`: the largest difference of two logits, relative to the largest logit.
        - `agreement`: of images with the same prediction.
        - `accuracy`: of the export.
        - `lost_accuracy`: accuracy of the run less that of the export.
        - `intervals`: a dict with the interval of `accuracy`.

    Raises:
        RuntimeError: the export's logits are not finite, or have another shape.
    """
    if logits.shape != wanted.shape:
        raise RuntimeError(f"the export has to give logits {wanted.shape}. Received: {logits.shape}")
    if broken := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise RuntimeError(
            f"the export has to give finite logits. Received: NaN or infinity in {broken} of {len(logits)} rows"
        )
    predicted, expected = logits.argmax(axis=1), wanted.argmax(axis=1)
    right, expected_right = predicted == labels, expected == labels
    return {
        "logit_difference": float(np.abs(logits - wanted).max() / np.abs(wanted).max()),
        "agreement": float((predicted == expected).mean()),
        "accuracy": float(right.mean()),
        "intervals": {"accuracy": mean_interval(right.astype(np.float64), seed=seed, highest=1.0)},
        # Counted in whole images, because the difference of two rounded fractions can exceed a bound that it should equal.
        "lost_accuracy": (int(expected_right.sum()) - int(right.sum())) / len(labels),
    }


def is_within(compared: Mapping[str, Any], bound: Bound) -> bool:
    """Return whether an export is as close to the model as the bound of its format asks for."""
    return bool(
        (bound.logit_difference is None or compared["logit_difference"] <= bound.logit_difference)
        and compared["agreement"] >= bound.agreement
        and compared["lost_accuracy"] <= bound.lost_accuracy
    )


def size_of(file: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    return (
        sum(part.stat().st_size for part in file.rglob("*") if part.is_file()) if file.is_dir() else file.stat().st_size
    )


def keep_export(name: str, found: Mapping[str, Any], path: Path) -> None:
    """Write a format's entry into `exports.json` if the export is within its bounds. Entries of other formats stay.

    If it is not within its bounds, a format's earlier entry is removed if the run itself wrote the file, because the entry is no longer
    true. A converted format keeps its earlier entry, because its earlier export is still there.

    Args:
        name: a key of `FORMATS`.
        found: what `export` returned.
        path: of the workdir.
    """
    file = path / paths.EXPORTS
    file.parent.mkdir(exist_ok=True)
    known = writing.read_json(file) if file.is_file() else {}
    if found["within_bounds"]:
        known[name] = found
    elif not FORMATS[name].converted:
        known.pop(name, None)
    writing.write_json(file, {each: known[each] for each in FORMATS if each in known})


if __name__ == "__main__":
    command.run(main)
