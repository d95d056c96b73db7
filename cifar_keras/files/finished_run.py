"""Read what a finished run left in its workdir, for the commands that continue from it."""

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_keras import config
from cifar_keras.config import DataConfig, DatasetKind, DataSource, dataset_of
from cifar_keras.errors import UserError, reason_of
from cifar_keras.files import paths, writing


class FinishedRun(NamedTuple):
    """A finished run, as its workdir has it."""

    path: Path
    result: dict[str, Any]
    config: config.RunConfig
    logits: NDArray[np.float32]  # [n, classes], of the test images
    labels: NDArray[np.int64]  # [n]
    records: list[dict[str, Any]]  # the lines of metrics.jsonl

    def with_data_dir(self, data_dir: str, is_prepared: Callable[[DataConfig], bool]) -> "FinishedRun":
        """Return the run with a config that reads its images from this machine, and from nowhere else.

        Args:
            data_dir: the TFDS folder, or the folder or CSV file of the run's own pictures; "" is the one that the run used.
            is_prepared: returns whether the folder that the settings name holds their images, e.g. `data.datasets.is_prepared`.

        Raises:
            UserError: the images are not there.
        """
        run_config = with_kept_exclude(self.config, self.path)
        data, (kind, place) = run_config.data, dataset_of(run_config.data)
        if kind in (DatasetKind.FOLDER, DatasetKind.CSV):
            where = data_dir or str(self._found(place))
            data = dataclasses.replace(data, dataset=f"{kind}:{where}")
            if not is_prepared(data):
                raise UserError(
                    f"--data_dir has to name the folder or the CSV file of the run's pictures. Received: {where}"
                )
            return self._replace(config=dataclasses.replace(run_config, data=data))
        where = data_dir or str(self._found(data.data_dir))
        data = dataclasses.replace(data, data_dir=where, archive="")
        if not is_prepared(data):
            raise UserError(
                f"--data_dir has to name the TFDS folder with the run's images; `prepare` fetches them. Received: {where}"
            )
        if data.data_source is not DataSource.SYNTHETIC:
            data = dataclasses.replace(data, data_source=DataSource.PREPARED)
        return self._replace(config=dataclasses.replace(run_config, data=data))

    def _found(self, path: str) -> Path:
        """Return a path to the run's images.

        A relative path begins in the folder where the run was started. If the workdir was relative too, that folder lies above the
        workdir, and the path is looked up there.
        """
        named, workdir = Path(path), Path(self.config.workdir)
        above = self.path.resolve().parents[len(workdir.parts) - 1 :][:1]
        if above and self.path.resolve() == above[0] / workdir and not str(named).startswith("~"):
            # If `named` is absolute, this is `named` itself.
            return above[0] / named
        return named


def with_kept_exclude(run_config: config.RunConfig, path: Path) -> config.RunConfig:
    """Return a run's config with the list of excluded images that its workdir keeps, if it does. The original may have changed."""
    kept = path / paths.EXCLUDED
    if not run_config.subset.exclude or not kept.is_file():
        return run_config
    return dataclasses.replace(run_config, subset=dataclasses.replace(run_config.subset, exclude=str(kept)))


def write_predictions(path: Path, **arrays: NDArray[Any]) -> None:
    """Write the logits and labels of the splits into a workdir, for `read_finished_run`.

    Args:
        path: the workdir.
        arrays: `test_logits` and `validation_logits` float32 `[n, classes]`; `test_labels` and `validation_labels` int64 `[n]`.
    """
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    writing.write_whole(path / paths.PREDICTIONS, content.getvalue())


def read_finished_run(path: Path) -> FinishedRun:
    """Return what a run left in its workdir.

    Raises:
        UserError: something is missing, damaged, or of another version.
    """
    result, run_config = _read_result(path / paths.RESULT)
    try:
        with np.load(path / paths.PREDICTIONS) as kept:
            logits, labels = kept["test_logits"], kept["test_labels"]
        records = writing.read_json_lines(path / paths.METRICS)
        # The last record is that of the end of the last epoch.
        float(records[-1]["validation_accuracy"]), int(records[-1]["step"])
    except OSError as error:
        raise UserError(f"the run cannot be used: {reason_of(error)}. Received: {path}") from error
    except (EOFError, KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the run cannot be used, no run of this version left it: {type(error).__name__}, {error}. Received: {path}"
        ) from error
    return FinishedRun(path, result, run_config, logits, labels, records)


class Validation(NamedTuple):
    """What a run left of its validation split."""

    logits: NDArray[np.float32]  # [n, classes]
    labels: NDArray[np.int64]  # [n]
    temperature: float  # that the model serves with


def read_validation(path: Path) -> Validation:
    """Return the logits and labels of the validation images of a finished run.

    Raises:
        UserError: there is no finished run, or an earlier version left it, without these logits.
    """
    result, _ = _read_result(path / paths.RESULT)
    try:
        with np.load(path / paths.PREDICTIONS) as kept:
            logits, labels = kept["validation_logits"], kept["validation_labels"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the run has no validation logits that can be read: {reason_of(error)}. Received: {path / paths.PREDICTIONS}"
        ) from error
    return Validation(logits, labels, float(result["calibration"]["temperature"]))


def _read_result(path: Path) -> tuple[dict[str, Any], config.RunConfig]:
    result = writing.read_json(path)
    try:
        run_config = config.from_values(config.with_later_settings(result["config"]))
        config.validate(run_config)
        float(result["calibration"]["temperature"]), float(result["calibration"]["test"]["loss"])
        float(result["minutes"]["total"])
        for split in (result["test"], result["validation"]):
            for metric in ("accuracy", "loss", "brier"):
                float(split[metric]), float(split["intervals"][metric][1])
    except (UserError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"the result cannot be used: {type(error).__name__}, {error}. Received: {path}") from error
    return result, run_config


def check_found(path: Path) -> None:
    """Check that the files which `evaluate`, `export` and `explain` left in a workdir can be read.

    A new report includes them, so commands check them before they spend hours on new results.

    Raises:
        UserError: a file is damaged, or of another version.
    """
    for name, check in (
        (paths.ROBUSTNESS, _check_robustness),
        (paths.EXPORTS, _check_exports),
        (paths.EXPLANATION, _check_explanation),
    ):
        file = path / name
        if not file.exists():
            continue
        content = writing.read_json(file)
        try:
            check(content)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{file.name} is damaged or of another version ({type(error).__name__}, {error}); remove it, and the command that made it "
                f"can make it again. Received: {file}"
            ) from error


def _check_robustness(content: dict[str, Any]) -> None:
    for row in content["rows"]:
        wanted = ["accuracy", "loss", "calibration_error"] + ["human_cross_entropy"] * ("human_entropy" in row)
        for metric in wanted:
            float(row[metric]), float(row["intervals"][metric][1])
    for found in content.get("unknown", {}).values():
        int(found["known"]), int(found["unknown"]), int(found["unreadable"])
        for rate in ("auroc", "false_positive_rate"):
            float(found[rate]), float(found["intervals"][rate][1])
    for mean in content["means"].values():
        float(mean["accuracy"]), float(mean["interval"][1])


def _check_exports(content: dict[str, Any]) -> None:
    for export in content.values():
        float(export["accuracy"]), float(export["intervals"]["accuracy"][1]), float(export["images_per_second"])


def _check_explanation(content: dict[str, Any]) -> None:
    int(content["train_images"]), list(content["neighbours"]), content["suspects"]
