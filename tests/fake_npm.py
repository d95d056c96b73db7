"""A program called npm that packs what a test gives it, in the way that the test asks for."""

import os
import sys
from pathlib import Path

import pytest

PACK = """
import os, sys, time
from pathlib import Path
options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:] if argument.startswith("--"))
wanted = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
here = Path(__file__).parent
with (here / "calls").open("a") as calls:
    print(os.getpid(), *wanted, file=calls)
cache = Path(options["cache"])
cache.mkdir()
(cache / "in-transit").write_bytes(bytes(1000))
content = (here / "content").read_bytes()
target = Path(options["pack-destination"], wanted[1].replace("@", "-") + ".tgz")
"""

ENDINGS = {
    "right": "target.write_bytes(content)",
    "wrong": "target.write_bytes(content[::-1])",
    "truncated": "target.write_bytes(content[:-1])",
    "silent": "",
    "failing": 'target.write_bytes(content); sys.exit("npm error code E404\\nnpm error 404 Not Found\\nnpm error log: x")',
    "hanging": "target.write_bytes(content[:-1]); time.sleep(600)",
}


class FakeNpm:
    """The only program on PATH: `npm pack NAME@VERSION --pack-destination=FOLDER --cache=FOLDER`."""

    def __init__(self, folder: Path, content: bytes, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._calls = folder / "calls"
        folder.mkdir()
        (folder / "content").write_bytes(content)
        (folder / "pack.py").write_text(PACK + ENDINGS[ending])
        program = folder / "npm"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{folder}/pack.py" "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    def calls(self) -> list[str]:
        """The arguments of each call that are no options."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [line.split(maxsplit=1)[1] for line in lines]

    def is_running(self) -> bool:
        """Whether any call has not ended."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return any(is_running(int(line.split()[0])) for line in lines)


def is_running(process: int) -> bool:
    """Whether a process exists and is not just waiting for its parent to take note of its end."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:  # it ended since, or the system has no such folder
        return not Path("/proc").is_dir()
    return status.rpartition(")")[2].split()[0] not in "ZX"
