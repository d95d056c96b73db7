"""`python -m cifar_keras.export --model=WORKDIR --format=onnx,litert`: a run's model for other runtimes, each proven to be that model."""

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
from cifar_keras.errors import UserError
from cifar_keras.evaluation.uncertainty import mean_interval
from cifar_keras.exporting.formats import FORMATS, Bound
from cifar_keras.files import environment, paths, workdir, writing
from cifar_keras.files.finished_run import FinishedRun, check_found, read_finished_run


def main(argv: Sequence[str]) -> None:
    """Convert, run each export by its own runtime on all test images, compare, and keep those that are within their bounds."""
    arguments = flags.parse_export(argv)
    run = read_finished_run(arguments.model).with_data_dir(arguments.data_dir, is_prepared)
    check_formats(arguments.formats, run.path)
    check_found(run.path)
    environment.load_keras()
    import tensorflow as tf

    # Leave the GPUs to the processes that run the exports; converting needs none.
    tf.config.set_visible_devices([], "GPU")
    from cifar_keras.data.datasets import load_dataset
    from cifar_keras.exporting.saved_model import check_classes, load_saved_model
    from cifar_keras.reporting import pages
    from cifar_keras.reporting.tables import exports_table

    model = load_saved_model(run.path)
    dataset = load_dataset(run.config)
    check_classes(model, dataset.class_names, arguments.model)
    exports = {}
    with workdir.claimed(run.path, "--model"), paths.scratch_folder(run.path) as scratch:
        np.save(scratch / "images.npy", dataset.test.images)
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


def export(
    name: str, run: FinishedRun, model: Any, dataset: Any, scratch: Path, *, calibration_images: int
) -> dict[str, Any]:
    """Make an export, prove it, and put it into the workdir if it is what it should be.

    Args:
        name: a key of `FORMATS`.
        run: the run.
        model: its SavedModel, loaded.
        dataset: its images.
        scratch: folder with `images.npy`, the test images.
        calibration_images: training images that int8 learns its ranges from, drawn by the run's seed.

    Returns:
        What `exports.json` says of a format.
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
    """Check that what the formats need is there: packages, and the files that the run itself has written.

    Raises:
        UserError: it is not.
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
    """Run an export by its own runtime in a process of its own, and compare it with the run's predictions.

    Args:
        name: a key of `FORMATS`.
        file: the export.
        scratch: folder with `images.npy`, the test images.
        run: the run, whose `predictions.npz` is what an export is compared with.

    Returns:
        What `exports.json` says of a format, but for `share_of_float32`.

    Raises:
        RuntimeError: the runtime cannot run it.
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
    # The runtime has printed why.
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
    """Compare the logits of an export, `[n, classes]`, with those that the run measured.

    Args:
        logits: of the export.
        wanted: of the run.
        labels: int64 `[n]`.
        seed: of the resamples, the run's, so that an export with the same predictions has the run's interval.

    Returns:
        `logit_difference`, the largest, as a fraction of the largest logit; `agreement`, the fraction of images with the same
        prediction; `accuracy` of the export, and `lost_accuracy` by it; all fractions. `intervals` has that of `accuracy`.

    Raises:
        RuntimeError: they are not finite, or of another shape.
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
        # Of whole images, because the difference of two rounded fractions can be above a bound that it is equal to.
        "lost_accuracy": (int(expected_right.sum()) - int(right.sum())) / len(labels),
    }


def is_within(compared: Mapping[str, Any], bound: Bound) -> bool:
    """Return whether an export is as near to the model as its format promises."""
    return bool(
        (bound.logit_difference is None or compared["logit_difference"] <= bound.logit_difference)
        and compared["agreement"] >= bound.agreement
        and compared["lost_accuracy"] <= bound.lost_accuracy
    )


def size_of(file: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return (
        sum(part.stat().st_size for part in file.rglob("*") if part.is_file()) if file.is_dir() else file.stat().st_size
    )


def keep_export(name: str, found: Mapping[str, Any], path: Path) -> None:
    """Put what was found of a format into the workdir if it is within its bounds, beside what is known of others.

    Of a file that the run itself wrote what was known earlier is then not true any more; an earlier export lies there as it was.
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
