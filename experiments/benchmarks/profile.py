"""`python -m experiments.benchmarks.profile`: measure what oneDNN's time in a training step goes into, by its `ONEDNN_VERBOSE` lines.

The work that TensorFlow does itself is not included: reading, resizing, sums over pixels, and the optimizer.
"""

import argparse
import collections
import tempfile
from pathlib import Path

from cifar_keras.files import environment, writing
from experiments.benchmarks.__main__ import Worker
from experiments.benchmarks.cases import Case

RESULT = Path(__file__).parent.parent / "results" / "profile.json"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.profile", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--system", choices=["ours", "ours_float32"], default="ours", help="in which dtype")
    parser.add_argument("--image_sizes", nargs="+", type=int, default=[64, 128], help="in pixels")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long is measured")
    parser.add_argument("--output", type=Path, default=RESULT, help="the JSON file to write")
    return parser


def main() -> None:
    """Profile our training step, print the fractions, and write them."""
    arguments = make_parser().parse_args()
    rows = []
    for image_size in arguments.image_sizes:
        case = Case("train_step", image_size, arguments.batch_size)
        fractions = profile(arguments.system, case, arguments.seconds)
        rows.append({"work": case.work, "image_size": image_size, "batch_size": case.batch_size, "shares": fractions})
        for name, fraction in fractions.items():
            print(f"{image_size:4} px  {name:30}{fraction:7.1%}", flush=True)
    content = {"rows": rows, "environment": environment.describe_environment(), "commit": environment.source_commit()}
    writing.write_json(arguments.output, content)


def profile(system: str, case: Case, seconds: float) -> dict[str, float]:
    """Return the fraction of oneDNN's time that each kind of primitive takes, the largest fraction first."""
    with tempfile.TemporaryFile("w+") as told:
        worker = Worker(system, {"ONEDNN_VERBOSE": "profile_exec"}, told)
        worker.ask(case=case)
        told.seek(0, 2)
        begin = told.tell()
        worker.ask(trial=seconds)
        worker.close()
        told.seek(begin)
        milliseconds = milliseconds_of(told.read())
    total = sum(milliseconds.values())
    return {
        name: milliseconds[name] / total for name in sorted(milliseconds, key=milliseconds.__getitem__, reverse=True)
    }


def milliseconds_of(verbose: str) -> dict[str, float]:
    """Return the milliseconds of each kind of primitive, summed over oneDNN's lines.

    A line is `onednn_verbose,v1,primitive,exec,cpu,KIND,IMPLEMENTATION,PASS,...,MILLISECONDS`, in some versions without `v1`.
    """
    spent: dict[str, float] = collections.defaultdict(float)
    for line in verbose.splitlines():
        fields = line.split(",")
        if fields[0] == "onednn_verbose" and "exec" in fields:
            kind, _, direction = fields[fields.index("exec") + 2 :][:3]
            spent[kind if direction == "undef" else f"{kind} {direction}"] += float(fields[-1])
    return spent


if __name__ == "__main__":
    main()
