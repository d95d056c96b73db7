"""`python -m experiments.benchmarks`: measure every system side by side and write `experiments/results/benchmarks.json`.

All systems run at once, each in a process of its own, and take turns: trial 1 of each, then trial 2 of each. So a machine that gets
slower gets slower for all. Only one system works at a time. For each case, the result has the median, the lowest and the highest trial
of each system. Works with several batch sizes are measured at the best one of each system, which a short trial of each size finds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cifar_keras.files import environment, writing
from experiments.benchmarks.cases import BATCH_SIZES, FIXED, Case

WORTHWHILE = 1.03  # the speed that a larger batch has to reach, relative to the best one so far
RESULT = Path(__file__).parent.parent / "results" / "benchmarks.json"

# For each system, what `worker` loads, and the environment variables that it gets. Plain Keras and PyTorch run with their defaults. By
# default TensorFlow leaves oneDNN off on processors without AVX-512 VNNI, so plain Keras is measured once more with oneDNN on.
SYSTEMS: dict[str, tuple[str, dict[str, str]]] = {
    "ours": ("ours:auto", {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    "ours_float32": ("ours:float32", {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    "keras_float32": ("plain_keras:float32", {}),
    "keras_float32_onednn": ("plain_keras:float32", {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    "keras_bfloat16": ("plain_keras:bfloat16", {}),
    "torch_float32": ("plain_torch:float32", {}),
    "torch_bfloat16": ("plain_torch:bfloat16", {}),
    "limit_float32": ("limit:float32", {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    "limit_bfloat16": ("limit:bfloat16", {"TF_ENABLE_ONEDNN_OPTS": "1"}),
}


class Worker:
    """One system in a process of its own. What its libraries print goes to `told`."""

    def __init__(
        self, name: str, more_variables: dict[str, str] | None = None, told: IO[str] | int = subprocess.DEVNULL
    ) -> None:
        system, variables = SYSTEMS[name]
        as_it_comes = {name: value for name, value in os.environ.items() if name not in environment.VARIABLES}
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmarks.worker", system],
            env={**as_it_comes, "TF_CPP_MIN_LOG_LEVEL": "2", **variables, **(more_variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, and return its answer. If the process has died, every answer says so."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"not_measured": "its process ended"}
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"not_measured": "its process ended"}')
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="all by default")
    parser.add_argument("--works", nargs="+", help="works to measure, such as train_step; all by default")
    parser.add_argument("--image_sizes", nargs="+", type=int, help="in pixels; all by default")
    parser.add_argument("--trials", type=int, default=5, help="trials of each system and case")
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long a trial takes")
    parser.add_argument("--output", type=Path, default=RESULT, help="the JSON file to write")
    return parser


def main() -> None:
    """Measure all cases, print the rows, and write them."""
    arguments = make_parser().parse_args()
    workers = [Worker(name) for name in arguments.systems]
    rows = []
    for candidates in cases(arguments.works, arguments.image_sizes):
        for row in measure(workers, candidates, arguments.trials, arguments.seconds):
            rows.append(row)
            print(in_words(row), flush=True)
    for worker in workers:
        worker.close()
    machine = environment.describe_environment()
    content = {"rows": rows, "environment": machine, "commit": environment.source_commit()}
    writing.write_json(arguments.output, content)


def cases(works: list[str] | None, image_sizes: list[int] | None) -> Iterator[list[Case]]:
    """Yield the cases, each as a list with the batch sizes among which a system may choose. None asks for all."""
    choices = [
        [Case(work, image_size, batch_size) for batch_size in batch_sizes]
        for (work, image_size), batch_sizes in BATCH_SIZES.items()
    ]
    for candidates in [*choices, *([case] for case in FIXED)]:
        case = candidates[0]
        if (works is None or case.work in works) and (image_sizes is None or case.image_size in image_sizes):
            yield candidates


def measure(workers: list[Worker], candidates: list[Case], trials: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each system that does the work."""
    chosen = {worker: set_up_best(worker, candidates) for worker in workers}
    speeds: dict[Worker, list[float]] = {worker: [] for worker in workers}
    answers: dict[Worker, dict[str, Any]] = {}
    for _ in range(trials):
        for worker in workers:
            if chosen[worker] is not None:
                answers[worker] = worker.ask(trial=seconds)
                speeds[worker] += (
                    [answers[worker]["images_per_second"]] if "images_per_second" in answers[worker] else []
                )
    for worker in workers:
        case = chosen[worker]
        if case is not None and speeds[worker]:
            yield {
                "work": case.work,
                "image_size": case.image_size,
                "batch_size": case.batch_size,
                "system": worker.name,
                "images_per_second": statistics.median(speeds[worker]),
                "low": min(speeds[worker]),
                "high": max(speeds[worker]),
                "trials": len(speeds[worker]),
                "peak_memory_gib": answers[worker]["peak_memory_gib"],
            }


def set_up_best(worker: Worker, candidates: list[Case]) -> Case | None:
    """Set up a worker at the batch size at which it is fastest, and return that case; None if it does not do this work.

    Larger batch sizes are tried as long as they are faster by `WORTHWHILE`.
    """
    best, best_speed = None, 0.0
    for case in candidates:
        answer = worker.ask(case=case)
        if "not_measured" in answer and best is None:
            reason = answer["not_measured"]
            print(f"{case.work} {case.image_size} px: not measured for {worker.name}: {reason}", flush=True)
            return None
        if answer.get("images_per_second", 0.0) < best_speed * WORTHWHILE:
            worker.ask(case=best)
            break
        best, best_speed = case, answer["images_per_second"]
    return best


def in_words(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    return (
        f"{row['work']:15}{row['image_size']:4} px  batch {row['batch_size']:3}  {row['system']:21}"
        f"{row['images_per_second']:10,.1f} images/s  ({row['low']:,.1f} to {row['high']:,.1f})  "
        f"{row['peak_memory_gib']:.1f} GiB"
    )


if __name__ == "__main__":
    main()
