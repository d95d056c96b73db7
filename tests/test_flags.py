import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_keras import command, flags
from cifar_keras.config import (
    DataSource,
    EvaluationConfig,
    OptimizerName,
    RunConfig,
    Setting,
    Views,
    from_values,
    other_sets_of,
    settings_of,
)
from cifar_keras.errors import UserError
from cifar_keras.exporting.formats import FORMATS
from cifar_keras.models.backbones import BACKBONES

SETTINGS = settings_of()
ALWAYS = {"help", "flagfile"}


def parse(*arguments: str) -> RunConfig:
    return flags.parse_config(["train", *arguments])


def line_of(flag: str, value: Any) -> str:
    return f"--{flag}={str(value).lower() if isinstance(value, bool) else value}"


# A flag, its default where it takes a value, and the lines under it.
PARAGRAPH = re.compile(r"^  --(?:\[no\])?(\w+)(?:=(.*))?\n((?: {6}.*\n?)*)", re.MULTILINE)


def without_spaces(text: str) -> str:
    return "".join(text.split())


@pytest.fixture(scope="module")
def help_text() -> dict[str, tuple[str, str]]:
    """What `--help` prints, in a process of its own: each flag's default, and its paragraph without spaces."""
    command = [sys.executable, "-m", "cifar_keras.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: cifar-keras train [--flag=value ...]\n")
    assert max(map(len, done.stdout.splitlines())) <= 110
    paragraphs = PARAGRAPH.findall(done.stdout)
    found = {flag: (default, without_spaces(meaning)) for flag, default, meaning in paragraphs}
    assert len(found) == len(paragraphs)
    return found


def test_there_is_one_flag_for_each_setting(help_text: dict[str, tuple[str, str]]) -> None:
    assert sorted(help_text) == sorted([*ALWAYS, "dry_run", *(leaf.flag for leaf in SETTINGS)])


@pytest.mark.parametrize("leaf", SETTINGS, ids=lambda leaf: leaf.flag)
def test_help_says_what_a_flag_means_and_what_it_may_be(help_text: dict[str, tuple[str, str]], leaf: Setting) -> None:
    default, said = help_text[leaf.flag]
    bounds = leaf.field.metadata
    assert len(bounds["help"]) > 10
    assert said.startswith(without_spaces(bounds["help"].replace("this phase", f"the {leaf.section} phase")))
    limits = [f"{name} {bounds[name]}" for name in ("minimum", "maximum", "above", "below") if bounds[name] is not None]
    assert all(without_spaces(limit) in said for limit in limits)
    if leaf.type is bool:
        assert said.endswith(f"(default:{'on' if leaf.field.default else 'off'})")
    else:
        assert default == str(leaf.field.default)


@pytest.mark.parametrize(
    ("flag", "choices"),
    [
        ("data_source", list(DataSource)),
        ("head_optimizer", list(OptimizerName)),
        ("finetune_optimizer", list(OptimizerName)),
        ("backbone", sorted(BACKBONES)),
    ],
)
def test_help_lists_the_choices(help_text: dict[str, tuple[str, str]], flag: str, choices: list[str]) -> None:
    assert f"[{','.join(choices)}]" in help_text[flag][1]


def test_no_flags_are_the_defaults() -> None:
    assert parse() == RunConfig()


@given(data=st.data())
def test_what_is_written_to_a_flagfile_comes_back(
    valid_values: st.SearchStrategy[dict[str, Any]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = data.draw(valid_values)
    lines = [line_of(flag, value) for flag, value in values.items()]
    flagfile = tmp_path_factory.getbasetemp() / "drawn.flags"
    flagfile.write_text("\n".join(["# drawn", "", *map(shlex.quote, lines), ""]), "utf-8")
    assert parse(f"--flagfile={flagfile}") == from_values(values)
    assert parse(*lines) == from_values(values)


def test_the_last_of_two_wins(tmp_path: Path) -> None:
    flagfile = tmp_path / "a.flags"
    flagfile.write_text("--seed=1\n--noflip\n// a comment too\n")
    config = parse(f"--flagfile={flagfile}", "--seed=2")
    assert (config.seed, config.augmentation.flip) == (2, False)
    assert parse("--seed=2", f"--flagfile={flagfile}").seed == 1
    assert parse("--noflip", "--flip").augmentation.flip


def test_two_parsers_share_nothing() -> None:
    parse("--seed=5")
    assert parse().seed == 0


def test_a_flagfile_includes_another(tmp_path: Path) -> None:
    (tmp_path / "base.flags").write_text("--seed=1\n--dropout=0.5\n")
    (tmp_path / "more.flags").write_text(f"--flagfile={tmp_path / 'base.flags'}\n--seed=2\n")
    config = parse("--flagfile", str(tmp_path / "more.flags"))
    assert (config.seed, config.model.dropout) == (2, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flagfile=/nowhere/x.flags"], r"--flagfile cannot be read: No such file or directory\. "),
        (["--flagfile=/"], r"--flagfile cannot be read: Is a directory\. "),
        (["--flagfile="], r"--flagfile has to name a file\. "),  # absl itself would take the defaults
        (["--flagfile", ""], r"--flagfile has to name a file\. "),
        (["--seed=1", "-flagfile="], r"--flagfile has to name a file\. "),
        (["--flagfile"], r"--flagfile has to name a file\. "),
        (["--workdir=r\udce9"], r"--workdir has to be text\. "),
        (["--data_dir=d\udce9"], r"--data_dir has to be text\. "),
        (["--workdr=x"], r"Unknown command line flag 'workdr'\. Did you mean: workdir\? "),
        (["--epochs=3"], r"Unknown command line flag 'epochs'.* "),
        (["--seed=one"], r"flag --seed=one: .* "),
        (["--seed=1.5"], r"flag --seed=1\.5: .* "),
        (["--seed"], r"Missing value for flag --seed\. "),
        (["--dropout=much"], r"flag --dropout=much: .* "),
        (["--flip=perhaps"], r"flag --flip=perhaps: .* "),
        (["--nodropout"], r"Unknown command line flag 'nodropout'.* "),
        (["--optimizer=sgd"], r"Unknown command line flag 'optimizer'.* "),
        (["--head_optimizer=SGD"], r"--head_optimizer has to be one of sgd, adamw\. "),
        (["--data_source=web"], r"--data_source has to be one of auto, prepared, archive, npm, tfds, synthetic\. "),
        (["--head_learning_rate=nan"], r"--head_learning_rate has to be at most 100 and above 0\. "),
        (["--image_size=31"], r"--image_size has to be at least 32 for --backbone=resnet50\. "),
        (["stray"], r"only flags are accepted.*\. "),
        (["--seed=1", "seed=2"], r"only flags are accepted.*\. "),
        (["--", "--seed=2"], r"only flags are accepted.*\. "),
    ],
)
def test_bad_flags_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"^{message}Received: [^\n]+$"):
        parse(*arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"--sed=3\n", "Unknown command line flag 'sed'"),
        (b"--seed=3 why\n", "only flags are accepted"),
        (b"seed=3\n", "only flags are accepted"),
        (b"--flagfile=/nowhere/x.flags\n", "--flagfile cannot be read: "),
        (b"# caf\xe9\n--seed=3\n", "--flagfile has to name a text file in UTF-8: "),
        (b"\x89PNG\r\n\x1a\n", "--flagfile has to name a text file in UTF-8: "),
    ],
)
def test_bad_flagfiles_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    flagfile = tmp_path / "bad.flags"
    flagfile.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{message}[^\n]*[.?] Received: [^\n]+$"):
        parse(f"--flagfile={flagfile}")


def test_evaluate_takes_a_model_and_a_data_folder(tmp_path: Path) -> None:
    assert flags.parse_evaluate(["evaluate", f"--model={tmp_path}"]) == (tmp_path, "", EvaluationConfig())
    arguments = flags.parse_evaluate(["evaluate", f"--model={tmp_path}", "--data_dir=d"])
    assert (arguments.model, arguments.data_dir) == (tmp_path, "d")


def test_evaluate_takes_the_settings_of_evaluation(tmp_path: Path) -> None:
    asked = ["--test_time_augmentation=flip", "--test_sets=corruptions,cifar10_1/v4"]
    settings = flags.parse_evaluate(["evaluate", f"--model={tmp_path}", *asked]).settings
    assert settings == EvaluationConfig(Views.FLIP, "corruptions,cifar10_1/v4")
    assert other_sets_of(settings) == ["cifar10_1/v4"]


def test_export_takes_formats(tmp_path: Path) -> None:
    parsed = flags.parse_export(["export", f"--model={tmp_path}", "--format=onnx,litert,onnx"])
    assert parsed == (tmp_path, "", ["onnx", "litert"], 200)
    assert flags.parse_export(["export", f"--model={tmp_path}"]).formats == list(FORMATS)


def test_export_calibrates_with_an_image_at_least(tmp_path: Path) -> None:
    parsed = flags.parse_export(["export", f"--model={tmp_path}", "--calibration_images=1"])
    assert parsed.calibration_images == 1
    with pytest.raises(UserError, match=r"^--calibration_images has to be at least 1\. Received: 0$"):
        flags.parse_export(["export", f"--model={tmp_path}", "--calibration_images=0"])


@pytest.mark.parametrize("value", ["", "tflite", "onnx,,litert", "onnx litert"])
def test_a_format_that_there_is_not_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--format has to name some of keras, .* Received: "):
        flags.parse_export(["export", f"--model={tmp_path}", f"--format={value}"])


def test_explain_takes_a_number_of_images(tmp_path: Path) -> None:
    assert flags.parse_explain(["explain", f"--model={tmp_path}"]) == (tmp_path, "", 0)
    assert flags.parse_explain(["explain", f"--model={tmp_path}", "--train_images=5"]).train_images == 5
    with pytest.raises(UserError, match=r"^--train_images has to be at least 0\. Received: -1$"):
        flags.parse_explain(["explain", f"--model={tmp_path}", "--train_images=-1"])


def test_predict_takes_a_model_and_files(tmp_path: Path) -> None:
    arguments = flags.parse_predict(["predict", f"--model={tmp_path}", "a.png", "b.jpg"])
    assert arguments == flags.PredictArguments(tmp_path, [Path("a.png"), Path("b.jpg")], 3, None, None, 0.0, None)
    assert flags.parse_predict(["predict", f"--model={tmp_path}", "--top=1", "a.png"]).top == 1
    # A table has one class of each file unless the flag says otherwise.
    assert flags.parse_predict(["predict", f"--model={tmp_path}", "--output=a.csv", "a.png"]).top == 1
    assert flags.parse_predict(["predict", f"--model={tmp_path}", "--output=a.csv", "--top=2", "a.png"]).top == 2
    # Behind "--" a file may have any name.
    assert flags.parse_predict(["predict", f"--model={tmp_path}", "--", "--top"]).files == [Path("--top")]


def test_the_model_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    assert flags.parse_evaluate(["evaluate", "--model=~/run"]).model == tmp_path / "run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model has to name the workdir of a run"),
        (["--model=/nowhere"], "--model has to name the workdir of a run"),
        ([f"--model={__file__}"], "--model has to name the workdir of a run"),
        (["--model=~nobody-of-this-name/run"], "--model has to name the workdir of a run"),
        (["--model=/", "--seed=1"], "Unknown command line flag 'seed'"),
    ],
)
def test_what_evaluate_and_predict_refuse(arguments: list[str], message: str) -> None:
    match = rf"^{message}[^\n]*\. Received: [^\n]+$"
    with pytest.raises(UserError, match=match):
        flags.parse_evaluate(["evaluate", *arguments])
    with pytest.raises(UserError, match=match):
        flags.parse_predict(["predict", *arguments, "a.png"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=/"], r"name at least one image file behind the flags\. Received: none"),
        (["--model=/", "--top=0", "a.png"], r"--top has to be at least 1\. Received: 0"),
        (["--model=/", "--min_probability=1.5", "a.png"], r"--min_probability has to be from 0 to 1\. Received: 1.5"),
        (["--model=/", "--min_probability=nan", "a.png"], r"--min_probability has to be from 0 to 1\. Received: nan"),
        (["--model=/", "--precision=0", "a.png"], r"--precision has to be above 0 and below 1\. Received: 0.0"),
        (["--model=/", "--precision=1", "a.png"], r"--precision has to be above 0 and below 1\. Received: 1.0"),
        (
            ["--model=/", "--precision=0.9", "--min_probability=0.5", "a.png"],
            r"--min_probability is a threshold and --precision fits one; .*\. Received: 0.5 and 0.9",
        ),
        (
            ["--model=/", "--attribution=~nobody-of-this-name/a.png", "b.png"],
            r"--attribution is no path .* Received: ~nobody.*",
        ),
        (["--model=/", "--top=two", "a.png"], r"flag --top=two: .* Received: --model=/ --top=two a.png"),
    ],
)
def test_what_predict_refuses(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        flags.parse_predict(["predict", *arguments])


def test_evaluate_takes_no_files() -> None:
    with pytest.raises(UserError, match=r"^only flags are accepted, each as --name=value\. Received: a.png$"):
        flags.parse_evaluate(["evaluate", "--model=/", "a.png"])


@pytest.mark.parametrize(
    ("module", "listed"),
    [
        ("evaluate", {"model", "data_dir", "test_sets", "test_time_augmentation", "unknown"}),
        ("predict", {"model", "top", "attribution", "output", "min_probability", "precision"}),
        ("export", {"model", "data_dir", "format", "calibration_images"}),
        ("explain", {"model", "data_dir", "train_images"}),
        ("compare", {"picture"}),
    ],
)
def test_every_command_has_help(module: str, listed: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    parse_command = getattr(flags, f"parse_{module}")
    with pytest.raises(SystemExit) as stopped:
        parse_command([module, "--help"])
    assert stopped.value.code == 0
    found = {flag for flag, _, meaning in PARAGRAPH.findall(capsys.readouterr().out) if meaning.strip()}
    assert found == listed | ALWAYS


def test_help_begins_with_the_ten_settings_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags.parse_config(["train", "--help"])
    topics = capsys.readouterr().out.split("\n\n")[1:]
    assert topics[0].startswith("Most runs change these:\n")
    assert [flag for flag, _, _ in PARAGRAPH.findall(topics[0])] == list(flags.FIRST)
    assert len(flags.FIRST) == 10
    assert topics[1].splitlines()[0] == "The run as a whole:"
    # Every setting stands under the topic of its part of the config.
    assert "--[no]flip" in next(topic for topic in topics if topic.startswith("Augmentation: random changes"))


def test_a_user_error_is_one_message_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(argv: Any) -> None:
        raise UserError("--seed is odd. Received: 3")

    with pytest.raises(SystemExit) as stopped:
        command.run(refuse)
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", "error: --seed is odd. Received: 3\n")


def test_a_disk_that_cannot_be_written_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/report.html")

    with pytest.raises(SystemExit) as stopped:
        command.run(fail)
    assert stopped.value.code == 2
    error = "error: the system does not allow it: No space left on device. Received: runs/a/report.html\n"
    assert capsys.readouterr() == ("", error)


def test_other_errors_are_not_hidden() -> None:
    def fail(argv: Any) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        command.run(fail)
