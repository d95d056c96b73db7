"""No container engine is needed: the Dockerfiles are read, and what they name has to exist."""

import configparser
import fnmatch
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILES = ("docker/Dockerfile.cpu", "docker/Dockerfile.gpu")
README = ROOT / "docker" / "README.md"


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """List (instruction, arguments) with continued lines joined and comments left out."""
    lines = [line for line in (ROOT / dockerfile).read_text().splitlines() if not line.startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in logical if line.strip()]


def arguments_of(dockerfile: str, instruction: str) -> list[str]:
    return [arguments for name, arguments in instructions(dockerfile) if name == instruction]


def is_ignored(path: str) -> bool:
    """Apply .dockerignore: the last pattern that matches the path or a folder above it decides."""
    above = [path, *map(str, Path(path).parents)]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        # "**/" is any number of folders, none among them.
        patterns = [pattern, pattern.removeprefix("**/")]
        matches = any(fnmatch.fnmatchcase(part, one) for part in above for one in patterns)
        if matches and pattern and not pattern.startswith("#"):
            ignored = not line.startswith("!")
    return ignored


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def check_module(name: str) -> None:
    assert (ROOT / Path(*name.split("."))).with_suffix(".py").is_file(), f"there is no module {name}"


def check_recipe(flag: str) -> None:
    assert (ROOT / flag.removeprefix("--flagfile=")).is_file(), f"there is no recipe {flag}"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_is_copied_exists_and_is_not_ignored(dockerfile: str) -> None:
    sources = [source for arguments in arguments_of(dockerfile, "COPY") for source in arguments.split()[:-1]]
    assert {"cifar_keras", "experiments", "pyproject.toml", "setup.cfg"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_the_build_reads_is_copied_before_it(dockerfile: str) -> None:
    read = [setup()["metadata"]["long_description"].removeprefix("file:").strip(), setup()["metadata"]["license_files"]]
    names = [f"{name} {arguments}" for name, arguments in instructions(dockerfile)]
    install = next(index for index, line in enumerate(names) if line.startswith("RUN pip install"))
    copied = " ".join(line for line in names[:install] if line.startswith("COPY")).split()
    assert {*read, "pyproject.toml", "setup.cfg", "cifar_keras"} <= set(copied)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_entry_point_is_the_same_command_as_everywhere(dockerfile: str) -> None:
    (entry_point,) = arguments_of(dockerfile, "ENTRYPOINT")
    (default,) = arguments_of(dockerfile, "CMD")
    assert json.loads(entry_point) == ["python", "-m", "cifar_keras.train"]
    check_module("cifar_keras.train")
    for flag in json.loads(default):
        check_recipe(flag)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_versions_are_those_of_the_package(dockerfile: str) -> None:
    (base,) = arguments_of(dockerfile, "FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert version
    assert f"Programming Language :: Python :: {version[1]}" in setup()["metadata"]["classifiers"].splitlines()
    assert ('".[cuda]"' in (ROOT / dockerfile).read_text()) == dockerfile.endswith("gpu")


def test_tensorflow_with_cuda_is_the_same_tensorflow() -> None:
    cuda = setup()["options.extras_require"]["cuda"].strip().splitlines()[-1]
    assert cuda.replace("[and-cuda]", "") in setup()["options"]["install_requires"].splitlines()


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_run_is_not_root_and_owns_its_volumes(dockerfile: str) -> None:
    assert arguments_of(dockerfile, "USER") == ["${USER_ID}"]
    assert arguments_of(dockerfile, "ARG") == ["USER_ID=1000"]
    (made,) = (line for line in arguments_of(dockerfile, "RUN") if line.startswith("useradd"))
    (volumes,) = arguments_of(dockerfile, "VOLUME")
    for volume in json.loads(volumes):
        assert volume in shlex.split(made)


def test_ignoring_starts_from_nothing() -> None:
    for path in (".git/config", "runs/latest/model.keras", ".venv/bin/python", "cifar_keras/__pycache__/config.pyc"):
        assert is_ignored(path), path
    assert not is_ignored("cifar_keras/data/__init__.py")
    assert not is_ignored("README.md")


def test_the_readme_names_what_exists() -> None:
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL))
    files = re.findall(r"docker/Dockerfile\.\w+", commands)
    assert set(files) == set(DOCKERFILES)
    for name in re.findall(r"-m (cifar_keras\.\w+)", commands):
        check_module(name)
    recipes = re.findall(r"--flagfile=\S+", commands)
    assert recipes
    for flag in recipes:
        check_recipe(flag)
    built = set(re.findall(r"--tag (\S+) \.", commands))
    run = set(re.findall(r"(cifar_keras:\w+) ", commands))
    assert built == run
