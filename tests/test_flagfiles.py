import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_keras.errors import UserError
from cifar_keras.files.flagfiles import expanded


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'--workdir="my run"\n', ["--workdir=my run"]),
        (b"--workdir='my run'", ["--workdir=my run"]),
        (b"--workdir=com  # note\n", ["--workdir=com"]),
        (b"--workdir=com#note\n", ["--workdir=com#note"]),
        (b"\xef\xbb\xbf--seed=3\r\n--flip\r\n", ["--seed=3", "--flip"]),
        (b"--seed 3 --noflip\n", ["--seed", "3", "--noflip"]),
        (b"# $a\n// it's\n\n  --seed=3", ["--seed=3"]),
        (b"--workdir='$a'", ["--workdir=$a"]),
        ("--workdir=é\u2028b".encode(), ["--workdir=é\u2028b"]),
    ],
)
def test_lines_are_read_as_a_shell_reads_words(tmp_path: Path, content: bytes, words: list[str]) -> None:
    file = tmp_path / "a.flags"
    file.write_bytes(content)
    assert expanded([f"--flagfile={file}"]) == words
    assert expanded(["--seed=1", "-flagfile", str(file), "--seed=2"]) == ["--seed=1", *words, "--seed=2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--data_dir=$HOME/x", "nothing is filled in"),
        ('--data_dir="$HOME/x"', "nothing is filled in"),
        ("--seed=`date`", "nothing is filled in"),
        ('--workdir="my run', "No closing quotation"),
        ("--workdir=a\\", "No escaped character"),
        ("--", "only flags"),
    ],
)
def test_what_cannot_be_understood_is_named_with_its_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "a.flags"
    file.write_text(f"# why\n{line}\n")
    message = rf"^--flagfile: line 2 of {re.escape(str(file))}: .*{reason}.*\. Received: {re.escape(line)}$"
    with pytest.raises(UserError, match=message):
        expanded([f"--flagfile={file}"])


def test_a_file_that_includes_itself_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.flags", tmp_path / "two.flags"
    one.write_text(f"--flagfile={two}\n")
    two.write_text(f"--flagfile={one}\n")
    with pytest.raises(UserError, match=r"includes itself\. Received: .*one\.flags > .*two\.flags > .*one\.flags$"):
        expanded([f"--flagfile={one}"])


def test_behind_two_hyphens_a_file_may_have_any_name(tmp_path: Path) -> None:
    assert expanded(["--top=1", "--", "--flagfile=x"]) == ["--top=1", "--", "--flagfile=x"]


@given(words=st.lists(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).map("--a={}".format)))
def test_what_is_quoted_for_a_shell_comes_back(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "quoted.flags"
    file.write_text("\n".join(map(shlex.quote, words)), "utf-8")
    assert expanded([f"--flagfile={file}"]) == words
