"""The pages: every command in them can be run, every link leads somewhere, every message is one of the program's."""

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import finish_small_run

from cifar_keras import export, flags
from cifar_keras.command import COMMANDS
from cifar_keras.data import synthetic
from cifar_keras.errors import UserError
from experiments import large_set, predict_files, tables
from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import profile

ROOT = Path(__file__).parents[1]
PAGES = [path for pattern in (*tables.PAGES, "docker/README.md") for path in sorted(ROOT.glob(pattern))]
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINKS = re.compile(r"\]\(([^)\s]+)\)")


def blocks_of(language: str) -> list[tuple[str, str]]:
    """The code blocks of a language on all pages, each with the name of its page and its number there."""
    return [
        (f"{page.relative_to(ROOT)}:{number}", match[2])
        for page in PAGES
        for number, match in enumerate(BLOCKS.finditer(page.read_text()))
        if match[1] == language
    ]


def name_of(value: object) -> str | None:
    return value if isinstance(value, str) and "\n" not in value else ""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone with finished runs, where each program only notes its arguments."""
    folder = tmp_path_factory.mktemp("clone")
    programs = folder / "programs"
    for name in (
        "python",
        "python3.11",
        "pip",
        "cifar-keras",
        "mkdocs",
        "ruff",
        "mypy",
        "docker",
        "hadolint",
        "uv",
        "cp",
    ):
        for place in (programs, folder / ".venv" / "bin", folder / "lowest" / "bin"):
            place.mkdir(parents=True, exist_ok=True)
            program = place / name
            # Arguments may hold spaces, but no line breaks.
            program.write_text(f'#!/bin/sh\n{{ echo {name}; for each; do echo "$each"; done; echo; }} >> "$NOTES"\n')
            program.chmod(0o755)
    (folder / ".venv" / "bin" / "activate").touch()
    for name in ("experiments", "tests", "docs", "docker"):
        (folder / name).symlink_to(ROOT / name)
    for run in (
        "quickstart",
        "one_epoch",
        "pruned",
        "seed_1",
        "seed_2",
        "quickstart-sparsity_0.5",
        "distilled",
        "weighted",
        "photos",
    ):
        (folder / "runs" / run).mkdir(parents=True)
    return folder


def commands_of(block: str, machine: Path) -> list[list[str]]:
    """What a block runs, by a shell that expands it."""
    notes = machine / "notes"
    notes.write_text("")
    variables = {"PATH": f"{machine / 'programs'}:/usr/bin:/bin", "NOTES": str(notes), "HOME": str(machine)}
    script = f"set -euo pipefail\n{block}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=machine, env=variables, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [entry.split("\n") for entry in notes.read_text().rstrip("\n").split("\n\n") if entry]


def check_command(program: str, arguments: Sequence[str]) -> None:
    """Check that a command could be run as it stands."""
    if program in ("python", "python3.11") and arguments[:1] == ["-m"]:
        check_module(arguments[1], arguments[2:])
    elif program in ("python", "python3.11"):
        assert (ROOT / arguments[0]).is_file()
    elif program == "cifar-keras" and arguments[0] != "completion":
        check_ours(arguments[0], arguments[1:])
    elif program in ("pip", "uv"):
        check_extras(arguments)
    elif program == "mkdocs":
        assert (ROOT / arguments[-1]).is_file()


PARSERS = {
    "experiments.benchmarks": benchmarks.make_parser,
    "experiments.benchmarks.profile": profile.make_parser,
    "experiments.large_set": large_set.make_parser,
    "experiments.predict_files": predict_files.make_parser,
}


def check_module(module: str, arguments: Sequence[str]) -> None:
    package, _, name = module.rpartition(".")
    if package == "cifar_keras":
        check_ours(name, arguments)
    elif module in PARSERS:
        PARSERS[module]().parse_args(list(arguments))
    elif package == "experiments":
        assert (ROOT / "experiments" / f"{name}.py").is_file()
        # These take workdirs alone.
        assert [argument for argument in arguments if argument.startswith("-")] in ([], ["--check"])
    elif module == "pytest":
        for path in (argument for argument in arguments if argument.startswith("tests/")):
            assert (ROOT / path).is_file()
    else:
        assert module in ("venv", "http.server", "pip"), module


def check_ours(command: str, arguments: Sequence[str]) -> None:
    assert command in COMMANDS
    parse = flags.parse_train if command in ("train", "prepare") else getattr(flags, f"parse_{command}")
    if list(arguments) == ["--help"]:
        with pytest.raises(SystemExit):
            parse([command, *arguments])
    else:
        parse([command, *arguments])


def check_extras(arguments: Sequence[str]) -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for argument in arguments:
        if match := re.search(r"^\.\[(.*)\]$", argument):
            assert set(match[1].split(",")) <= set(setup["options.extras_require"])


@pytest.mark.parametrize(("place", "block"), blocks_of("bash") + blocks_of("sh"), ids=name_of)
def test_a_command_of_a_page_can_be_run(place: str, block: str, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine)
    if place.startswith("docker/"):  # they need a daemon; test_docker.py reads them
        subprocess.run(["bash", "-n", "-c", block], check=True)
        return
    commands = commands_of(block, machine)
    assert commands or "eval" in block or "mkdir" in block or "source" in block
    for program, *arguments in commands:
        check_command(program, arguments)


def test_a_command_that_cannot_be_run_is_found(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine)
    for block in (
        "cifar-keras train --no_such_flag=1",
        "python -m cifar_keras.evaluate --model=runs/none",
        "python -m experiments.benchmarks --systemz ours",
        "python -m experiments.benchmarks --systems theirs",
        "python -m experiments.none runs/quickstart",
        "pip install '.[none]'",
        "python -m pytest tests/test_none.py",
        "python -m cifar_keras.train --flagfile=experiments/none.flags",
        "no_such_program",
    ):
        with pytest.raises((AssertionError, UserError, SystemExit)):
            for program, *arguments in commands_of(block, machine):
                check_command(program, arguments)


@pytest.mark.parametrize(("place", "block"), blocks_of("python"), ids=name_of)
def test_python_of_a_page_names_what_there_is(place: str, block: str) -> None:
    imported: dict[str, object] = {}
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module = importlib.import_module(node.module)
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                imported[alias.name] = getattr(module, alias.name)
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            assert hasattr(imported[node.value.id], node.attr)


def anchors_of(page: Path) -> set[str]:
    """The names by which headings are linked to, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", BLOCKS.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINKS.findall(BLOCKS.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def messages() -> Iterator[str]:
    """The texts in the package's source; what is filled in later is an empty pair of braces."""
    for path in (ROOT / "cifar_keras").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_of_troubleshooting_is_one_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    listed = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    assert len(listed) > 25
    known = [*messages(), "Did you mean"]  # absl's
    assert [message for message in listed if not any(message in each for each in known)] == []


def test_the_readme_is_short_and_narrow() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 800
    assert max(len(line) for _, block in BLOCKS.findall(text) for line in block.splitlines()) <= 44  # a phone's width
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - 1 for line in tables} == {4}


def test_every_page_is_in_the_site_and_its_links_hold(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--config-file",
            "docs/site/mkdocs.yml",
            "--site-dir",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.endswith("_proxy")},
    )
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        place = page.relative_to(ROOT).as_posix().removeprefix("docs/")
        if not place.startswith("docker/"):
            html = tmp_path / place.replace("README.md", "index.md").replace(".md", ".html")
            assert html.is_file(), place
    # A reader's browser fetches nothing from elsewhere.
    for html in tmp_path.rglob("*.html"):
        assert not re.findall(
            r'src="(?:https?:)?//|<link [^>]*stylesheet[^>]*href="(?:https?:)?//', html.read_text()
        ), html


EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "cifar_keras").rglob("*.py"))
    if ">>> " in path.read_text()
]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_of_a_docstring_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert done.attempted > 0
    assert done.failed == 0


@pytest.mark.slow
def test_python_of_the_page_of_exports_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small run: every block gives the logits that the run kept."""
    run = finish_small_run(tmp_path / "runs" / "quickstart")
    export.main(["export", f"--model={run}", "--format=onnx,litert"])
    monkeypatch.chdir(tmp_path)
    kept = np.load(run / "predictions.npz")["test_logits"]
    images = synthetic.make_dataset(0).test.images
    blocks = [block for place, block in blocks_of("python") if place.startswith("docs/exports.md")]
    assert len(blocks) == 4
    for block in blocks:
        names: dict[str, Any] = {"images": images}
        exec(compile(block, "docs/exports.md", "exec"), names)
        found = names["logits"] if "logits" in names else names["outputs"]["logits"].numpy()
        np.testing.assert_allclose(found, kept[: len(found)], rtol=1e-3, atol=1e-3)
