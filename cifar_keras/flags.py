"""Config <-> absl flags: one flag for each setting. The only file that knows flags."""

import contextlib
import enum
import shlex
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from cifar_keras import config as config_lib
from cifar_keras.errors import UserError
from cifar_keras.exporting.formats import FORMATS
from cifar_keras.files import flagfiles, paths

HELP_WIDTH = 100  # columns
# The settings that a first run is likely to change; `--help` has them first.
FIRST = (
    *("flagfile", "workdir", "dataset", "backbone", "image_size"),
    *("global_batch_size", "head_epochs", "finetune_epochs", "finetune_learning_rate", "resume"),
)
# What some commands take beside flags.
BEHIND_THE_FLAGS = {"predict": " FILE_OR_FOLDER_OR_PATTERN ...", "compare": " RUN RUN ..."}
MOST_RUNS = 8  # that colours and markers tell apart
MOST_DRAWN = 12  # images under one another in a picture
TOP_PRINTED, TOP_WRITTEN = 3, 1  # classes of each file, where --top does not say it

_DEFINERS: dict[type, Callable[..., object]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
}


def parse_config(argv: Sequence[str]) -> config_lib.RunConfig:
    """Turn `[program, --flag=value, ...]` into a validated config; `--flagfile=NAME.flags` reads flags from a file.

    Raises:
        UserError: an unknown or malformed flag, a flagfile that cannot be opened, or a config that cannot work.
    """
    return _config_of(_flags_of("prepare"), argv)


def _config_of(values: flags.FlagValues, argv: Sequence[str]) -> config_lib.RunConfig:
    parse_arguments(values, argv)
    config = config_lib.from_values({leaf.flag: values[leaf.flag].value for leaf in config_lib.settings_of()})
    config_lib.validate(config)
    return config


class TrainArguments(NamedTuple):
    """What `cifar_keras.train` is told."""

    config: config_lib.RunConfig
    dry_run: bool  # check everything and say what the run would take


def parse_train(argv: Sequence[str]) -> TrainArguments:
    """Turn `[program, --flag=value, ...]` into what `train` is told.

    Raises:
        UserError: as in `parse_config`.
    """
    values = _flags_of("train")
    return TrainArguments(_config_of(values, argv), values["dry_run"].value)


class EvaluateArguments(NamedTuple):
    """What `cifar_keras.evaluate` is told."""

    model: Path  # a run's workdir
    data_dir: str  # "" is the run's own
    settings: config_lib.EvaluationConfig


class ExportArguments(NamedTuple):
    """What `cifar_keras.export` is told."""

    model: Path  # a run's workdir
    data_dir: str  # "" is the run's own
    formats: list[str]  # keys of `formats.FORMATS`
    calibration_images: int  # at least 1


class ExplainArguments(NamedTuple):
    """What `cifar_keras.explain` is told."""

    model: Path  # a run's workdir
    data_dir: str  # "" is the run's own
    train_images: int  # 0 is all


class PredictArguments(NamedTuple):
    """What `cifar_keras.predict` is told."""

    model: Path  # a run's workdir, or the folder of a SavedModel
    files: list[Path]  # files, folders and patterns
    top: int  # classes to print or to write
    attribution: Path | None  # PNG file for what the predictions come from
    output: Path | None  # CSV, JSON Lines or Parquet file for the predictions
    min_probability: float  # below it a file is unknown, 0..1
    precision: float | None  # of which the threshold is to be fitted, above 0 and below 1


class CompareArguments(NamedTuple):
    """What `cifar_keras.compare` is told."""

    runs: list[Path]  # workdirs, at least two
    picture: Path | None  # PNG file for the curves


def parse_evaluate(argv: Sequence[str]) -> EvaluateArguments:
    """Parse the command line of `cifar_keras.evaluate`.

    Raises:
        UserError: an unknown or malformed flag, or no --model.
    """
    values = _flags_of("evaluate")
    parse_arguments(values, argv)
    config = config_lib.from_values({leaf.flag: values[leaf.flag].value for leaf in _evaluation_settings()})
    config_lib.validate(config)
    return EvaluateArguments(_model_of(values), values["data_dir"].value, config.evaluation)


def parse_export(argv: Sequence[str]) -> ExportArguments:
    """Parse the command line of `cifar_keras.export`.

    Raises:
        UserError: an unknown or malformed flag, no --model, a format that there is not, or no image to calibrate with.
    """
    values = _flags_of("export")
    parse_arguments(values, argv)
    names = list(dict.fromkeys(values["format"].value.split(",")))
    if unknown := [name for name in names if name not in FORMATS]:
        raise UserError(f"--format has to name some of {', '.join(FORMATS)}. Received: {','.join(unknown)!r}")
    count = values["calibration_images"].value
    if count < 1:
        raise UserError(f"--calibration_images has to be at least 1. Received: {count}")
    return ExportArguments(_model_of(values), values["data_dir"].value, names, count)


def parse_explain(argv: Sequence[str]) -> ExplainArguments:
    """Parse the command line of `cifar_keras.explain`.

    Raises:
        UserError: an unknown or malformed flag, no --model, or --train_images below 0.
    """
    values = _flags_of("explain")
    parse_arguments(values, argv)
    count = values["train_images"].value
    if count < 0:
        raise UserError(f"--train_images has to be at least 0. Received: {count}")
    return ExplainArguments(_model_of(values), values["data_dir"].value, count)


def parse_predict(argv: Sequence[str]) -> PredictArguments:
    """Parse the command line of `cifar_keras.predict`.

    Raises:
        UserError: an unknown or malformed flag, no --model, no file, --top below 1, or a threshold that is none.
    """
    values = _flags_of("predict")
    files = parse_arguments(values, argv, files=True)
    if not files:
        raise UserError("name at least one image file behind the flags. Received: none")
    output, top = _file_of(values, "output"), values["top"].value
    top = (TOP_WRITTEN if output else TOP_PRINTED) if top is None else top
    if top < 1:
        raise UserError(f"--top has to be at least 1. Received: {top}")
    return PredictArguments(
        _model_of(values),
        [Path(file) for file in files],
        top,
        _file_of(values, "attribution"),
        output,
        *_thresholds_of(values),
    )


def _thresholds_of(values: flags.FlagValues) -> tuple[float, float | None]:
    """Return `--min_probability`, 0 if there is none, and `--precision`."""
    lowest, precision = values["min_probability"].value, values["precision"].value
    if lowest is not None and precision is not None:
        raise UserError(
            f"--min_probability is a threshold and --precision fits one; only one of them can be used. Received: {lowest} and {precision}"
        )
    if lowest is not None and not 0 <= lowest <= 1:
        raise UserError(f"--min_probability has to be from 0 to 1. Received: {lowest}")
    if precision is not None and not 0 < precision < 1:
        raise UserError(f"--precision has to be above 0 and below 1. Received: {precision}")
    return lowest or 0.0, precision


def parse_compare(argv: Sequence[str]) -> CompareArguments:
    """Parse the command line of `cifar_keras.compare`.

    Raises:
        UserError: an unknown or malformed flag, fewer than two runs or more than can be told apart, or one that is no folder.
    """
    values = _flags_of("compare")
    names = parse_arguments(values, argv, files=True)
    if not 2 <= len(names) <= MOST_RUNS:
        raise UserError(
            f"name two to {MOST_RUNS} workdirs of runs behind the flags. Received: {shlex.join(names) or 'none'}"
        )
    runs = [_workdir_of(name, "each run") for name in names]
    return CompareArguments(runs, _file_of(values, "picture"))


def parse_arguments(values: flags.FlagValues, argv: Sequence[str], *, files: bool = False) -> list[str]:
    """Parse the command line into `values` and return the file names it ends with, which have to be allowed by `files`.

    `--help` prints every flag with its help and ends the process with status 0.

    Raises:
        UserError: what is wrong with a flag or a flagfile, or arguments that are no flags where none are allowed.
    """
    flags.DEFINE_bool("help", False, "print this help and stop", flag_values=values)
    # For the help alone: its flags take its place before anything is parsed.
    flags.DEFINE_string("flagfile", "", "file with more flags, such as a recipe in experiments/", flag_values=values)
    given = flagfiles.expanded(argv[1:])
    try:
        rest = list(values([argv[0], *given]))[1:]
    except flags.Error as error:
        reason = str(error).removeprefix("ERROR:: ").replace(" ?", "?").rstrip(".")
        raise UserError(f"{reason}{'' if reason.endswith('?') else '.'} Received: {shlex.join(argv[1:])}") from error
    for name in values:
        try:
            str(values[name].value).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"--{name} has to be text. Received: {values[name].value}") from error
    if values["help"].value:
        print(_help_of_command(values, Path(argv[0]).stem.split()[-1]))
        sys.exit(0)
    if rest and not files:
        raise UserError(f"only flags are accepted, each as --name=value. Received: {shlex.join(rest)}")
    return rest


def _flags_of(command: str) -> flags.FlagValues:
    """Return the flags of a command, with their defaults."""
    values = flags.FlagValues()
    if command in ("train", "prepare"):
        for leaf in config_lib.settings_of():
            _define_flag(leaf, values)
        if command == "train":
            help_text = "check everything, print what the run has and what it would take, and train nothing"
            flags.DEFINE_bool("dry_run", False, help_text, flag_values=values)
        return values
    if command != "compare":
        flags.DEFINE_string("model", "", "workdir of a run", flag_values=values)
    if command in ("evaluate", "export", "explain"):
        help_text = "TFDS folder with the images of the run, or folder or CSV file of its own pictures; empty is the one of the run"
        flags.DEFINE_string("data_dir", "", help_text, flag_values=values)
    if command == "evaluate":
        for leaf in _evaluation_settings():
            _define_flag(leaf, values)
    elif command == "export":
        help_text = f"formats, with commas between [{', '.join(FORMATS)}]"
        flags.DEFINE_string("format", ",".join(FORMATS), help_text, flag_values=values)
        help_text = (
            "training images that litert_int8 learns the ranges of its activations from, drawn by the run's seed"
        )
        flags.DEFINE_integer("calibration_images", 200, help_text, flag_values=values)
    elif command == "explain":
        help_text = "training images that are looked at, drawn by the run's seed; 0 is all"
        flags.DEFINE_integer("train_images", 0, help_text, flag_values=values)
    elif command == "predict":
        help_text = f"classes of each file, most probable first; by default {TOP_PRINTED} are printed, and {TOP_WRITTEN} is written"
        flags.DEFINE_integer("top", None, help_text, flag_values=values)
        help_text = "file to write the predictions to instead of printing them; ends with .csv, .jsonl or .parquet"
        flags.DEFINE_string("output", "", help_text, flag_values=values)
        help_text = "probability below which the most probable class is called unknown, 0 to 1"
        flags.DEFINE_float("min_probability", None, help_text, flag_values=values)
        help_text = "fraction of labels that shall be right, above 0 and below 1; fits --min_probability on the validation images"
        flags.DEFINE_float("precision", None, help_text, flag_values=values)
        help_text = (
            f"PNG file to draw what the classes of at most {MOST_DRAWN} files come from, by Grad-CAM and occlusion"
        )
        flags.DEFINE_string("attribution", "", help_text, flag_values=values)
    elif command == "compare":
        flags.DEFINE_string("picture", "", "PNG file to draw the curves of the runs into", flag_values=values)
    return values


def _evaluation_settings() -> list[config_lib.Setting]:
    return [leaf for leaf in config_lib.settings_of() if leaf.section == "evaluation"]


def choices_of(command: str) -> dict[str, list[str]]:
    """Return the flags of a command, each with the values that it may have; none where there are too many to list."""
    leaves = {leaf.flag: leaf for leaf in config_lib.settings_of()}
    found = {"flagfile": [], "help": []} | {name: [] for name in sorted(_flags_of(command))}
    for name in found.keys() & leaves.keys():
        kind = leaves[name].type
        values = tuple(kind) if issubclass(kind, enum.StrEnum) else leaves[name].field.metadata["choices"]
        found[name] = [str(value) for value in values] or (["true", "false"] if kind is bool else [])
    return found


def _model_of(values: flags.FlagValues) -> Path:
    workdir = _workdir_of(values["model"].value, "--model")
    return paths.expand_model("model", str(workdir))


def _file_of(values: flags.FlagValues, flag: str) -> Path | None:
    name = values[flag].value
    return paths.expand(flag, name) if name else None


def _workdir_of(name: str, called: str) -> Path:
    with contextlib.suppress(UserError):  # no path at all
        if name and (workdir := paths.expand(called, name)).is_dir():
            return workdir
    raise UserError(f"{called} has to name the workdir of a run. Received: {name!r}")


class _ResumeParser(flags.ArgumentParser):
    """`--resume` and `--noresume` say yes and no, as of a flag that is true or false."""

    def parse(self, argument: str) -> str:
        return {"true": "yes", "false": "no"}.get(argument, argument)


def _define_flag(leaf: config_lib.Setting, values: flags.FlagValues) -> None:
    if leaf.type is config_lib.Resume:
        flag = flags.Flag(
            _ResumeParser(),
            flags.ArgumentSerializer(),
            leaf.flag,
            str(leaf.field.default),
            help_of(leaf),
            boolean=True,
        )
        flags.DEFINE_flag(flag, values, module_name=leaf.section)
        return
    define = _DEFINERS.get(leaf.type, flags.DEFINE_string)
    default = str(leaf.field.default) if issubclass(leaf.type, enum.StrEnum) else leaf.field.default
    define(leaf.flag, default, help_of(leaf), flag_values=values, module_name=leaf.section or "run")


def _help_of_command(values: flags.FlagValues, command: str) -> str:
    """Return what `--help` prints: of `train` and `prepare` the settings of `FIRST`, then all others by topic."""
    if command in ("train", "prepare"):
        sections = {leaf.flag: leaf.section for leaf in config_lib.settings_of()}
        topics = {"Most runs change these": list(FIRST)}
        for name in values:
            if name not in FIRST:
                topics.setdefault(topic_of(sections.get(name, "")), []).append(name)
    else:
        topics = {"Flags": list(values)}
    lines = [f"usage: cifar-keras {command} [--flag=value ...]{BEHIND_THE_FLAGS.get(command, '')}"]
    for topic, members in topics.items():
        lines += ["", f"{topic}:", *(paragraph for name in members for paragraph in _help_of_flag(values[name]))]
    return "\n".join(lines)


def topic_of(section: str) -> str:
    """Return what a part of the config is about: the first line of its documentation."""
    part = typing.get_type_hints(config_lib.RunConfig)[section] if section else None
    return "The run as a whole" if part is None else str(part.__doc__).splitlines()[0].rstrip(".")


def _help_of_flag(flag: flags.Flag) -> list[str]:
    """Return the name of a flag with its default, as it is typed, and what it means."""
    switch = isinstance(flag.default, bool)
    default = "" if flag.default is None else flag.default
    name = f"  --[no]{flag.name}" if switch else f"  --{flag.name}={default}"
    meaning = f"{flag.help} (default: {'on' if flag.default else 'off'})" if switch else flag.help
    margin = " " * 6
    return [
        name,
        *textwrap.wrap(
            meaning,
            HELP_WIDTH,
            initial_indent=margin,
            subsequent_indent=margin,
            break_on_hyphens=False,
            break_long_words=False,
        ),
    ]


def help_of(leaf: config_lib.Setting) -> str:
    """Return what a setting means, and the values that it may have."""
    bounds = leaf.field.metadata
    choices = tuple(leaf.type) if issubclass(leaf.type, enum.StrEnum) else bounds["choices"]
    limits = [f"{name} {bounds[name]}" for name in ("minimum", "above", "maximum", "below") if bounds[name] is not None]
    allowed = ", ".join(str(choice) for choice in choices) or ", ".join(limits)
    # The phases share their fields, but each flag belongs to one of them.
    meaning = bounds["help"].replace("this phase", f"the {leaf.section} phase")
    return f"{meaning} [{allowed}]" if allowed else meaning
