"""`python -m experiments.benchmarks.worker SYSTEM`: a process in which one system works, on requests from standard input.

Each system needs a process of its own. In one process, the systems would share their variables, their threads and the global dtype.

Requests and answers are JSON, one per line. `{"case": [work, image_size, batch_size]}` sets a case up and warms it up.
`{"trial": seconds}` repeats the case for about that long. The answer has `images_per_second` or `not_measured`.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from cifar_keras.errors import reason_of
from cifar_keras.files.environment import peak_gib
from experiments.benchmarks.cases import Case, NotMeasuredError, Runnable

# The limit for a first batch, including tracing. A processor without bfloat16 instructions can take minutes.
PATIENCE_SECONDS = 40


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print goes to stderr, because stdout is for the answers.
    os.dup2(2, 1)
    module, _, variant = sys.argv[1].partition(":")
    system = importlib.import_module(f"experiments.benchmarks.{module}").System(variant)
    runnable, seconds_per_batch = None, 0.0
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "case" in request:
                # This frees the memory of the case before.
                runnable = None
                _forget_peak()
                runnable = system.set_up(Case(*request["case"]))
                if _seconds(runnable, 1) > PATIENCE_SECONDS:
                    raise NotMeasuredError(f"its first batch took more than {PATIENCE_SECONDS} s")
                seconds_per_batch = _seconds(runnable, 1)
                answer: dict[str, Any] = {"images_per_second": runnable.images_per_batch / seconds_per_batch}
            else:
                assert runnable is not None
                batches = max(1, round(request["trial"] / seconds_per_batch))
                answer = {"images_per_second": batches * runnable.images_per_batch / _seconds(runnable, batches)}
        except NotMeasuredError as error:
            answer = {"not_measured": str(error)}
        except Exception as error:
            answer = {"not_measured": f"it failed: {reason_of(error)}"}
        answer["peak_memory_gib"] = peak_gib()
        print(json.dumps(answer), file=answers, flush=True)


def _seconds(runnable: Runnable, batches: int) -> float:
    started = time.perf_counter()
    seconds = runnable.run(batches)
    return time.perf_counter() - started if seconds is None else seconds


def _forget_peak() -> None:
    # Linux only; elsewhere the peak is that of all cases so far.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


if __name__ == "__main__":
    main()
