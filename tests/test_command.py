"""A command as a process: whoever listens, whatever a name is made of, whatever its parent program has set."""

import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from cifar_keras.data import decoding
from cifar_keras.training.interruption import Interruption

ROOT = Path(__file__).parents[1]
SECONDS = 120  # ends a test that hangs


def program(body: str) -> list[str]:
    """A command whose `main` is `body`."""
    code = f"import os, sys, signal\nfrom cifar_keras import command\ndef main(argv):\n{textwrap.indent(textwrap.dedent(body), '    ')}"
    return [sys.executable, "-c", f"{code}\ncommand.run(main)"]


def test_what_is_opened_gets_no_closed_streams_number(tmp_path: Path) -> None:
    """With stdout closed the next file would be number 1, and all that C++ prints would go into it."""
    body = """
        file = open(argv[1], "w")
        print("printed")
        os.write(1, b"by C++")
        file.write("kept")
    """
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *program(body), str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(closed: str) -> None:
    body = "print('out'); print('err', file=sys.stderr); import subprocess; subprocess.run(['true'], check=True)"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *program(body)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS, check=False)
    assert done.returncode == 0
    assert done.stderr in (b"", b"err\n")


def without_a_reader(command: list[str], *, both: bool = False) -> tuple[int, bytes]:
    """Run a command into a pipe that nobody reads; return its status, and its stderr where that is another stream."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=writer,
        stderr=writer if both else subprocess.PIPE,
        timeout=SECONDS,
        check=False,
    )
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["train", "prepare", "evaluate", "export", "explain", "compare", "predict"])
def test_help_ends_quietly_when_nobody_reads_on(name: str) -> None:
    assert without_a_reader([sys.executable, "-m", f"cifar_keras.{name}", "--help"]) == (0, b"")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("print('x' * 100_000, flush=True)", 0),
        ("from cifar_keras.errors import UserError\nraise UserError('bad. Received: it')", 2),
        ("from cifar_keras.errors import InterruptedRunError\nprint(1)\nraise InterruptedRunError('asked')", 75),
        ("print(1, flush=True)\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()", 75),
    ],
)
def test_the_status_is_what_it_is_whoever_listens(body: str, status: int) -> None:
    assert without_a_reader(program(body), both=True)[0] == status


def test_bytes_that_are_no_text_and_characters_that_a_stream_has_not_are_escaped() -> None:
    body = "print(argv[1] + '\\u0416')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command: list[str | bytes] = [*program(body), b"caf\xe9"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"caf\\xe9\\u0416\n", b"")


def test_damaged_exif_data_of_a_photograph_are_no_matter(tmp_path: Path) -> None:
    """Pillow warns, with a line of its own code, and finds the orientation all the same."""
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a description that is long enough", 6
    content = io.BytesIO()
    Image.new("RGB", (24, 16)).save(content, "JPEG", exif=exif)
    damaged = bytearray(content.getvalue())
    damaged[damaged.index(b"Exif\0\0") + 20] ^= 0xFF  # the length of the description
    (tmp_path / "photograph.jpg").write_bytes(damaged)
    with pytest.warns(UserWarning, match="Tag data larger than file"):
        assert decoding.decode(bytes(damaged)).shape == (24, 16, 3)
    body = "from cifar_keras.data import decoding; print(decoding.decode(open(argv[1], 'rb').read()).shape)"
    done = subprocess.run(
        [*program(body), str(tmp_path / "photograph.jpg")], cwd=ROOT, capture_output=True, timeout=SECONDS, check=False
    )
    assert (done.stdout, done.stderr) == (b"(24, 16, 3)\n", b"")


def test_warnings_of_libraries_are_no_errors_whatever_a_parent_program_has_set() -> None:
    body = "import warnings; warnings.warn('old', DeprecationWarning)"
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    done = subprocess.run(program(body), cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_signals_that_are_to_be_ignored_stay_ignored() -> None:
    """As below `nohup`, and in a script's background."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interruption = Interruption()
        with interruption.listening(), interruption.waiting():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.asked
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_a_terminal_that_closes_asks_for_an_end() -> None:
    interruption = Interruption()
    with interruption.listening(), interruption.waiting():
        os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.asked


@pytest.mark.parametrize(
    "raised",
    [
        "OSError(28, os.strerror(28), 'place/file')",
        "RuntimeError('flush failed (errno = 28, error message = \\'No space left on device\\')')",
        "ValueError() from OSError(30, os.strerror(30))",
        "OSError(5, os.strerror(5))",
    ],
)
def test_a_disk_that_lets_nobody_write_is_one_message_whatever_library_says_so(raised: str) -> None:
    done = subprocess.run(
        program(f"raise {raised}"), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the system does not allow it: ")
    assert done.stderr.count("\n") == 1


def test_a_log_on_a_full_disk_is_not_laid_to_another_folder(tmp_path: Path) -> None:
    body = """
        from cifar_keras.files.workdir import claimed
        from pathlib import Path
        with claimed(Path(argv[1])):
            (Path(argv[1]) / "file").touch()
            print("a result", flush=True)
    """
    with Path("/dev/full").open("w") as full:
        command = [*program(body), str(tmp_path / "run")]
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False
        )
        assert (done.returncode, done.stderr) == (
            2,
            "error: the system does not allow it: No space left on device. Received: standard output\n",
        )
        warned = program("print('a warning', file=sys.stderr, flush=True)")
        assert subprocess.run(warned, cwd=ROOT, stderr=full, timeout=SECONDS, check=False).returncode == 0


def test_other_mistakes_keep_their_traceback() -> None:
    done = subprocess.run(
        program("raise ValueError('a bug')"), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
