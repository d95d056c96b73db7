import io
import os
import pty
import sys
import termios
import time
from pathlib import Path

import pytest
from test_tracking import fit, linear_model

from cifar_keras.config import HeadConfig
from cifar_keras.files import progress_bar as progress_module
from cifar_keras.files.progress_bar import progress
from cifar_keras.training import tracking
from cifar_keras.training.phases import head_phase
from cifar_keras.training.tracking import LogPhase, RunLog, TellProgress


def test_what_goes_to_a_file_is_whole_lines_and_not_many(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(progress_module, "EVERY_SECONDS", 0.2)
    for _ in progress(range(50), desc="test", unit="batch"):
        time.sleep(0.02)
    lines = stderr.getvalue().splitlines()
    assert 2 <= len(lines) <= 6  # of at least 1 s
    assert all(line.startswith("test: ") and " of 50, " in line and line.endswith(" left") for line in lines)
    assert "\r" not in stderr.getvalue()
    assert len(set(lines)) == len(lines)


def test_what_is_soon_over_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(progress(range(5), desc="test", unit="batch")) == [0, 1, 2, 3, 4]
    assert stderr.getvalue() == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(progress(range(3), desc="test", unit="batch")) == [0, 1, 2]
        terminal.flush()
        drawn = os.read(leader, 10_000).decode()
    os.close(leader)
    assert "100%" in drawn
    assert "\r" in drawn


def test_a_phase_tells_its_step_its_rate_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "EVERY_SECONDS", 0.0)
    log, model = RunLog(tmp_path), linear_model()
    phase = head_phase(HeadConfig(epochs=2), 25, image_size=16, first_epoch=0)
    logger = LogPhase(log, phase, global_batch_size=8)
    fit(model, log, phase, 25, callbacks=[logger, TellProgress(logger, phase, validation_images=16)])
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if "step" in line]
    assert [line.split(" images/s")[0].rsplit(" ", 1)[0] for line in steps] == [
        f"head phase: step {step} of 50," for step in range(2, 51)
    ]
    assert steps[-1].endswith(" images/s, 0.0 minutes left")
    assert [line for line in lines if "step" not in line] == [
        f"head phase: validation, {images} of 16 images" for images in (8, 16, 8, 16)
    ]
