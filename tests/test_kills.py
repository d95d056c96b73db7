"""Runs that are killed, at chosen moments and at random ones, end with the bits of the run that never was."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import encoded, write
from small_runs import finish_small_run, small_dataset

from cifar_keras.data.cifar10.layout import CLASS_NAMES

PROGRAM = Path(__file__).with_name("killed_program.py")
KILLS = int(os.environ.get("CIFAR_KERAS_KILLS", "25"))

Values = dict[str, NDArray[Any]]


class Sources(NamedTuple):
    """What runs begin with."""

    teacher: Path
    pictures: Path


class Kind(NamedTuple):
    """A kind of run: on so many virtual devices, of images in memory or of a folder of pictures."""

    virtual_devices: int
    pictures: bool = False


def make_sources(folder: Path) -> Sources:
    """A finished run, and a folder of pictures with the images of other runs."""
    dataset = small_dataset()
    for name in ("train", "validation", "test"):
        for place, (image, label) in enumerate(zip(*getattr(dataset, name), strict=True)):
            write(folder / "set", {f"{name}/{CLASS_NAMES[label]}/{place}.png": encoded(image)})
    return Sources(finish_small_run(folder / "teacher"), folder / "set")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("sources"))


def start(sources: Sources, kind: Kind, folder: Path, *moment: object, seconds: float = 0) -> int:
    """Run the program until it ends or is killed, and return its status; -9 says killed."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)}
    pictures = sources.pictures if kind.pictures else ""
    arguments = (kind.virtual_devices, folder, seconds, sources.teacher, pictures, *moment)
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def values_of(folder: Path) -> Values:
    with np.load(folder / "final.npz") as values:
        return dict(values)


def assert_identical(folder: Path, wanted: Values) -> None:
    values = values_of(folder)
    assert values.keys() == wanted.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)
        assert value.dtype == wanted[name].dtype


def moments_of(folder: Path) -> list[str]:
    return (folder / "moments.log").read_text().splitlines()


@pytest.fixture(scope="module")
def never_killed(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Values]:
    """The run of a kind that is never killed."""
    runs: dict[Kind, Values] = {}

    def run(kind: Kind) -> Values:
        if kind not in runs:
            folder = tmp_path_factory.mktemp("never_killed")
            assert start(sources, kind, folder) == 0
            runs[kind] = values_of(folder)
        return runs[kind]

    return run


KINDS = (
    *(("head phase", 1), ("step", 3), ("arrays written", 3), ("phase ends", 1)),
    # In the finetune phase, which reaches full sparsity after 6 of its 12 steps, with the checkpoint of the sixth.
    *(("step", 8), ("validation", 1), ("synced", 2)),
)
MID_EPOCH = (("step", 4), ("step", 3))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "deaths"), [(Kind(0), KINDS), (Kind(2), MID_EPOCH), (Kind(0, True), MID_EPOCH)])
def test_a_run_killed_at_every_kind_of_moment_ends_with_the_same_bits(
    kind: Kind,
    deaths: tuple[tuple[str, int], ...],
    sources: Sources,
    never_killed: Callable[[Kind], Values],
    tmp_path: Path,
) -> None:
    """One run that is killed many times: each process gets a bit further."""
    for moment, number in deaths:
        assert start(sources, kind, tmp_path, moment, number) == -signal.SIGKILL
        assert moments_of(tmp_path)[-1] == moment
    assert start(sources, kind, tmp_path) == 0
    assert_identical(tmp_path, never_killed(kind))


@pytest.mark.slow
def test_the_program_can_tell_a_difference(never_killed: Callable[[Kind], Values], tmp_path: Path) -> None:
    """A run from its beginning that lost its first step would be seen."""
    wanted = never_killed(Kind(0))
    assert sum(name.startswith("classifier/") for name in wanted) > 10
    assert sum(name.startswith("finetune/") for name in wanted) >= 5
    losses = [float(value) for name, value in wanted.items() if name.startswith("record/") and name.endswith("/loss")]
    assert len(set(losses)) == len(losses) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Kind(0), Kind(2), Kind(0, True)])
def test_runs_killed_at_random_moments_end_with_the_same_bits(
    kind: Kind, sources: Sources, never_killed: Callable[[Kind], Values], tmp_path: Path
) -> None:
    """`CIFAR_KERAS_KILLS` kills, 25 unless it is set, over as many runs as it takes."""
    wanted = never_killed(kind)
    chance, deaths, runs = random.Random(kind.virtual_devices), Counter[str](), 0
    while deaths.total() < KILLS:
        folder = tmp_path / str(runs)
        # Then never any more: beside other programs a process may not get a step further in the time that it has.
        while start(sources, kind, folder, seconds=chance.uniform(0.2, 6.0) if deaths.total() < KILLS else 0):
            deaths[moments_of(folder)[-1]] += 1
        assert_identical(folder, wanted)
        runs += 1
    print(f"{deaths.total()} kills in {runs} runs, after: {dict(deaths)}")
