"""The `cifar-keras` program: the same commands, and what a shell completes."""

import subprocess
import sys
from pathlib import Path

import pytest

import cifar_keras
from cifar_keras import command, flags
from cifar_keras.config import DataSource, settings_of
from cifar_keras.files.completion import completion
from cifar_keras.models.backbones import BACKBONES

ROOT = Path(__file__).parents[1]
SCRIPT = completion("bash", command.PROGRAM, {name: flags.choices_of(name) for name in command.COMMANDS})


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """What the script that pip installs runs."""
    program = "from cifar_keras.command import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


def completed(*words: str) -> set[str]:
    """What bash offers when the cursor is at the end of the last word; the equals sign is a word of its own there."""
    listed = " ".join(f"'{word}'" for word in words)
    program = f"{SCRIPT}\nCOMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _cifar_keras; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_the_program_has_the_commands_of_the_package() -> None:
    modules = {
        path.stem for path in Path(cifar_keras.__file__).parent.glob("*.py") if "command.run(main)" in path.read_text()
    }
    assert modules == command.COMMANDS.keys()
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in command.COMMANDS)
    assert run("--version").stdout == f"{cifar_keras.__version__}\n"


def test_a_command_is_the_module_of_its_name() -> None:
    alone = [
        subprocess.run(
            [sys.executable, "-m", "cifar_keras.compare", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        for arguments in (["--help"], ["only-one"])
    ]
    by_program = [run("compare", "--help"), run("compare", "only-one")]
    assert [done.returncode for done in by_program] == [done.returncode for done in alone] == [0, 2]
    assert "--[no]help" in by_program[0].stdout
    assert by_program[1].stderr == alone[1].stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "error: cifar-keras has the commands train, .* Received: fly\n"),
        (["completion"], "error: cifar-keras completion takes one of bash, zsh, fish. Received: none\n"),
        (["completion", "tcsh"], "error: cifar-keras completion takes one of bash, zsh, fish. Received: tcsh\n"),
    ],
)
def test_what_there_is_not_is_said(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message.split(".*", maxsplit=1)[0])
    assert done.stderr.endswith(message.rsplit(".*", maxsplit=1)[-1])


def test_bash_completes_commands_flags_and_values() -> None:
    assert completed("cifar-keras", "e") == {"evaluate", "export", "explain"}
    assert completed("cifar-keras", "train", "--head_o") == {"--head_optimizer="}
    assert completed("cifar-keras", "train", "--") == {
        "--help",
        "--flagfile=",
        "--dry_run=",
        *(f"--{leaf.flag}=" for leaf in settings_of()),
    }
    assert completed("cifar-keras", "train", "--backbone", "=") == BACKBONES.keys()
    assert completed("cifar-keras", "train", "--backbone", "=", "vgg") == {"vgg16", "vgg19"}
    assert completed("cifar-keras", "train", "--seed=1", "--data_source", "=", "") == set(DataSource)
    assert completed("cifar-keras", "predict", "--t") == {"--top="}
    assert completed("cifar-keras", "predict", "--head") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_every_flag(shell: str) -> None:
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for leaf in settings_of():
        assert f"--{leaf.flag}=" in done.stdout or f"-l {leaf.flag} " in done.stdout
    if shell == "bash":
        assert done.stdout.rstrip() == SCRIPT.rstrip()
